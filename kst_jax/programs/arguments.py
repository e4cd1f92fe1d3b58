"""The command-line parser of every program."""

import argparse
from typing import NoReturn

from kst_jax.errors import InputError


class Parser(argparse.ArgumentParser):
    """Keeps the line breaks of help texts, and raises InputError for bad arguments."""

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
        # `cli.run` handles it; it is here so that --help shows it.
        self.add_argument(
            "--debug",
            action="store_true",
            help="show a traceback if something fails",
        )

    def error(self, message: str) -> NoReturn:
        """Raises InputError; argparse would end the program."""
        raise InputError(f"{message} ({self.prog} --help explains)")


def words(text: str) -> list[str]:
    """Splits the value of an option that takes several words, separated by commas."""
    return [word for word in text.split(",") if word]
