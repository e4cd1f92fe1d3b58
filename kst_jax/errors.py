"""Exceptions whose messages users see, and a check for options."""


class InputError(ValueError):
    """An input from the user is unusable: a file, a config or a checkpoint.

    The message names the input, says why it is unusable and what to do about it. The
    command line prints it without a traceback and exits with code 1.
    """


class DivergedError(InputError):
    """Training diverged: the loss, gradient or parameters are no longer finite."""


def require(holds: bool, name: str, value: object, valid: str) -> None:
    """Raises InputError unless `holds`; `valid` describes the valid values in words."""
    if not holds:
        raise InputError(f"{name}={value!r} is out of range: it must be {valid}")


def require_setting(holds: bool, name: str, value: object, valid: str) -> None:
    """Raises InputError unless a setting such as data.size holds."""
    require(holds, f"config.{name}", value, valid)
