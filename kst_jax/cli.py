"""Command lines: a user's mistake is one clear message and exit code 1."""

import contextlib
import difflib
import functools
import glob
import io
import itertools
import os
import signal
import sys
import traceback
from collections.abc import Callable, Iterator
from typing import Any

import jax
from absl import app, flags, logging
from ml_collections import ConfigDict, config_flags

from kst_jax import parallel
from kst_jax.config_dict import from_dict, require_key
from kst_jax.errors import InputError


def run(main: Callable[[], None]) -> None:
    """Runs a program; an InputError becomes a message, or with --debug a traceback.

    Flags may be spelt with `-` for `_`.
    """
    debug = "--debug" in sys.argv
    given = [_spelt(argument) for argument in sys.argv[1:] if argument != "--debug"]
    sys.argv[1:] = given
    # A pipe that nobody reads any more fails here, not when Python ends; and logs grow.
    if isinstance(sys.stdout, io.TextIOWrapper):  # not what a caller put in its place
        # Names of files may hold what no text can.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    logging.set_verbosity(logging.FATAL)  # Orbax reports its every step and error
    # As an exception, so that what is unfinished is tidied up; training saves first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        main()
    except BrokenPipeError:  # `| head` has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # as shells tell of it
    except (InputError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
    except jax.errors.JaxRuntimeError as error:
        if debug or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        print("docs/training.md tells what takes less memory", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # as shells tell of it


def _spelt(argument: str) -> str:
    """`--batch-sizes=1-2` as `--batch_sizes=1-2`; what is no flag stays as it is."""
    if not argument.startswith("--"):
        return argument
    name, equals, value = argument[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"


def run_with_config(
    main: Callable[[Any, str], None],
    *,
    read: Callable[[Any], Any] = from_dict,
    require_key: Callable[[str], None] = require_key,
    default_workdir: str | None = None,
    may_join: bool = True,
) -> None:
    """Runs a program that takes --config, overrides of its keys, and --workdir.

    Args:
      main: the program, a function of config and workdir.
      read: makes the config of what the file gave, or raises InputError.
      require_key: raises InputError for an override's key that no config has.
      default_workdir: the folder, where none is given; None asks for one.
      may_join: it may be one of several processes, of which only the first one prints.
    """
    config = config_flags.DEFINE_config_file(
        "config",
        help_string="File of configs/, such as configs/demo.py. "
        "--config.section.key=value changes a value.",
    )
    workdir = flags.DEFINE_string(
        "workdir", default_workdir, "Folder of the run, where results go."
    )
    processes = _define_processes() if may_join else ()
    # Handled by `run`; defined so that --help tells of it.
    flags.DEFINE_bool("debug", False, "Show a traceback where something fails.")
    for name in ("config", "workdir", *processes, "debug"):
        flags.FLAGS.register_key_flag_for_module(sys.argv[0], flags.FLAGS[name])

    def absl_main(argv: list[str]) -> None:
        if argv[1:]:
            raise InputError(f"{argv[1]!r} is no flag; flags are given as --name=value")
        if not workdir.value:
            raise InputError("--workdir is missing; name a folder, such as runs/demo")
        checked = _checked(config.value, read)
        _keep_programs()
        joined = may_join and _connect()
        with _first_speaks() if joined else contextlib.nullcontext():
            main(checked, os.path.expanduser(workdir.value))

    parse = functools.partial(_parse, require_key=require_key)
    run(lambda: app.run(absl_main, flags_parser=parse))


def _keep_programs() -> None:
    """Keeps compiled programs for the next start, unless told where or not to.

    JAX's own settings come first: JAX_COMPILATION_CACHE_DIR names another folder,
    JAX_ENABLE_COMPILATION_CACHE=false keeps none.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if os.path.isabs(cache):  # not where a container's user has no home
            folder = os.path.join(cache, "kst_jax", "programs")
            jax.config.update("jax_compilation_cache_dir", folder)


def _define_processes() -> tuple[str, ...]:
    flags.DEFINE_bool(
        "distributed",
        False,
        "This is one of several processes that together are one run: on every host of "
        "a TPU pod, or started by Slurm, Open MPI or Kubernetes, where JAX finds the "
        "others by itself. See docs/pods.md.",
    )
    flags.DEFINE_string(
        "coordinator",
        None,
        "HOST:PORT of process 0, where nothing else tells; with --num_processes and "
        "--process_id it stands for --distributed.",
    )
    flags.register_validator(
        "coordinator",
        lambda value: value is None or ":" in value,
        message="--coordinator is HOST:PORT, such as 10.0.0.1:1234",
    )
    flags.DEFINE_integer(
        "num_processes", None, "With --coordinator: how many processes.", lower_bound=1
    )
    flags.DEFINE_integer(
        "process_id", None, "With --coordinator: number of this one.", lower_bound=0
    )
    return "distributed", "coordinator", "num_processes", "process_id"


def _connect() -> bool:
    """Joins the other processes, where flags say that there are any; tells if it did.

    Never of its own accord: what Slurm and clouds leave in the environment of a login
    node or an interactive shell looks like many processes where only one was started.
    """
    given = flags.FLAGS
    by_hand = (given.coordinator, given.num_processes, given.process_id)
    if None in by_hand and any(value is not None for value in by_hand):
        raise InputError(
            "--coordinator, --num_processes and --process_id belong together; give all "
            "three, or --distributed alone where JAX finds the others"
        )
    joins = bool(given.distributed or given.coordinator)
    if joins:
        parallel.connect(*by_hand)
    return joins


@contextlib.contextmanager
def _first_speaks() -> Iterator[None]:
    """Leaves messages and progress bars to the first process; errors are all told."""
    if parallel.is_first():
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield


def _help() -> str:
    """What a program does, and its own flags: first those that all of them have."""
    own = flags.FLAGS.get_key_flags_for_module(sys.argv[0])
    own.sort(key=lambda flag: flag.name not in ("config", "workdir"))  # a stable sort
    lines = [sys.modules["__main__"].__doc__ or "", "flags:"]
    for flag in own:
        default = (
            f" ({str(flag.default_as_str).strip(chr(39))})" if flag.default else ""
        )
        lines.append(f"  --{flag.name}")
        lines.append(flags.text_wrap(flag.help + default, indent=" " * 6))
    return "\n".join([*lines, "", "--helpfull lists those of absl and JAX too."])


def _parse(argv: list[str], require_key: Callable[[str], None]) -> list[str]:
    for argument in argv:
        if argument.startswith("--config."):
            require_key(argument.removeprefix("--config.").partition("=")[0])
    if {"-h", "--help"} & set(argv):
        print(_help())
        sys.exit(0)
    path = _config_file(argv)
    try:
        return flags.FLAGS(argv)
    except SystemExit:  # from --helpfull, which absl ends as if it were a mistake
        sys.exit(0)
    except Exception as error:  # a config file is code, and may fail in any way
        raise InputError(_cause(error, path)) from error


def _config_file(argv: list[str]) -> str:
    """The config file of a command line; InputError, with the nearest, for none."""
    for argument, following in itertools.pairwise([*argv, ""]):
        name, equals, value = argument.partition("=")
        path = (value if equals else following).partition(":")[0]
        if name == "--config" and path:
            if os.path.isfile(path):
                return path
            there = glob.glob("configs/**/*.py", recursive=True)
            near = difflib.get_close_matches(path, there, n=1)
            hint = f"is it {near[0]}?" if near else "they are in configs/"
            raise InputError(f"--config={path}: no such file in {os.getcwd()}; {hint}")
    return ""


def _cause(error: BaseException, path: str) -> str:
    """What to tell where flags or a config file failed."""
    chain = [error]
    while cause := chain[0].__cause__ or chain[0].__context__:
        chain.insert(0, cause)
    for each in chain:
        if isinstance(each, InputError):
            return str(each)
    for each in chain:
        if line := _line_of(each, path):
            return f"--config={path}, line {line}: {type(each).__name__}: {_flat(each)}"
    if isinstance(error, flags.Error):
        return _flat(error)
    if "get_config" in str(error):
        return f"--config={path}: has no function get_config"
    # Of a network's or a method's keys.
    return f"--config has no key {_flat(error)}"


def _line_of(error: BaseException, path: str) -> int | None:
    """The line at which code of a file failed, or cannot be read; None elsewhere."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return lines[-1] if lines else None


def _flat(error: BaseException) -> str:
    """An error's text on one line; ml_collections wraps some in others."""
    text: Any = error
    while isinstance(text, BaseException) and text.args:
        text = text.args[0]
    return " ".join(str(text).split())


def _checked(values: Any, read: Callable[[Any], Any]) -> Any:
    if values is None:
        raise InputError(
            "--config is missing; name a file, such as --config=configs/demo.py"
        )
    if not isinstance(values, ConfigDict):
        try:
            values.to_dict()
        except Exception as error:  # a file that failed to load tells why when used
            raise InputError(f"--config cannot be loaded: {error}") from error
    return read(values)
