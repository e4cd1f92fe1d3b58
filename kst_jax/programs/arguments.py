"""Command lines: one kind of parser for every program."""

import argparse
from typing import NoReturn

from kst_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """Shows texts as they are written, and raises InputError for a wrong word."""

    def __init__(
        self, program: str, description: str | None, epilog: str | None = None
    ):
        super().__init__(
            prog=program,
            description=description,
            epilog=epilog,
            formatter_class=argparse.RawDescriptionHelpFormatter,
            allow_abbrev=False,
        )
        # Handled by `cli.run`; here so that --help tells of it.
        self.add_argument(
            "--debug",
            action="store_true",
            help="show a traceback where something fails",
        )

    def error(self, message: str) -> NoReturn:
        """Raises InputError, where argparse would end the program."""
        raise InputError(f"{message} ({self.prog} --help explains)")


def words(text: str) -> list[str]:
    """The type of an option that takes several words, separated by commas."""
    return [word for word in text.split(",") if word]
