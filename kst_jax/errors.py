"""The exceptions that speak to users, and what raises one for options."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a config or a checkpoint.

    The message names what was given, why it cannot be used and what to do about it;
    the command line prints it without a traceback and exits with code 1.
    """


class DivergedError(InputError):
    """A training whose loss, gradient or parameters are no longer finite."""


def require(holds: bool, name: str, value: object, valid: str) -> None:
    """Raises InputError where an option's value is not `valid`, said in words."""
    if not holds:
        raise InputError(f"{name}={value!r} is out of range: it must be {valid}")
