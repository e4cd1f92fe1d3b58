"""Command lines: a user's mistake is one clear message and exit code 1."""

import signal
import sys
from collections.abc import Callable

from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from kst_jax.config import Config, from_dict, require_key
from kst_jax.errors import InputError

_INPUT_ERROR = f"{InputError.__module__}.{InputError.__qualname__}: "


def run(main: Callable[[], None]) -> None:
    """Runs a program; an InputError becomes a message, or with --debug a traceback."""
    debug = "--debug" in sys.argv
    sys.argv = [argument for argument in sys.argv if argument != "--debug"]
    try:
        main()
    except (InputError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # as shells tell of it


def run_with_config(main: Callable[[Config, str], None]) -> None:
    """Runs a program that takes --config, overrides of its keys, and --workdir."""
    config = config_flags.DEFINE_config_file(
        "config",
        help_string="File of configs/; --config.section.key=value changes a value.",
    )
    workdir = flags.DEFINE_string(
        "workdir", None, "Folder of the run: checkpoints, logs and results."
    )
    # Handled by `run`; defined so that --help tells of it.
    flags.DEFINE_bool("debug", False, "Show a traceback where something fails.")
    for name in ("config", "workdir", "debug"):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])

    def absl_main(argv: list[str]) -> None:
        logging.set_verbosity(logging.FATAL)  # Orbax reports its every step and error
        if argv[1:]:
            raise InputError(f"{argv[1]!r} is no flag; flags are given as --name=value")
        if not workdir.value:
            raise InputError("--workdir is missing; name a folder, such as runs/demo")
        main(_checked(config.value), workdir.value)

    run(lambda: app.run(absl_main, flags_parser=_parse))


def _parse(argv: list[str]) -> list[str]:
    for argument in argv:
        if argument.startswith("--config."):
            require_key(argument.removeprefix("--config.").partition("=")[0])
    try:
        return flags.FLAGS(argv)
    except flags.Error as error:
        # Where a config file failed, absl quotes its whole traceback.
        cause = str(error).strip().splitlines()[-1].strip()
        raise InputError(cause.removeprefix(_INPUT_ERROR)) from error
    except (AttributeError, KeyError, OSError) as error:
        raise InputError(f"--config cannot be loaded: {error}") from error


def _checked(values: object) -> Config:
    if values is None:
        raise InputError(
            "--config is missing; name a file, such as --config=configs/demo.py"
        )
    if not isinstance(values, ConfigDict):
        try:
            values.to_dict()
        except Exception as error:  # a file that failed to load tells why when used
            raise InputError(f"--config cannot be loaded: {error}") from error
    return from_dict(values)
