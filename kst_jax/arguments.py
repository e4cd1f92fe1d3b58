"""Command lines without a config: what all of their parsers have."""

import argparse


def parser(
    program: str, description: str | None, epilog: str | None = None
) -> argparse.ArgumentParser:
    """A parser whose help shows texts as they are written.

    Args:
      program: what is typed to run it.
      description: the program's docstring.
      epilog: what comes after the options.
    """
    made = argparse.ArgumentParser(
        prog=program,
        description=description,
        epilog=epilog,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    # Handled by `cli.run`; here so that --help tells of it.
    made.add_argument(
        "--debug", action="store_true", help="show a traceback where something fails"
    )
    return made
