"""The one exception that speaks to users."""


class InputError(ValueError):
    """Something the user gave cannot be used: a file, a config or a checkpoint.

    The message names what was given, why it cannot be used and what to do about it;
    the command line prints it without a traceback and exits with code 1.
    """
