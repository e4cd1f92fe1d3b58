"""Command lines of programs with --config, changes to its keys, and --workdir."""

import argparse
import contextlib
import difflib
import os
import pathlib
import traceback
import warnings
from collections.abc import Callable, Iterator
from typing import Any

from absl import flags
from ml_collections import ConfigDict, config_flags

import kst_jax.configs
from kst_jax import parallel
from kst_jax.config_dict import from_dict, require_key
from kst_jax.errors import InputError
from kst_jax.programs import cli
from kst_jax.programs.arguments import Parser

_CONFIGS = pathlib.Path(kst_jax.configs.__path__[0])


def run(
    main: Callable[[Any, str, argparse.Namespace], object],
    parser: Parser,
    *,
    read: Callable[[Any], Any] = from_dict,
    require_key: Callable[[str], None] = require_key,
    default_workdir: str | None = None,
    may_join: bool = False,
) -> None:
    """Runs a program on a config.

    Args:
      main: the program, a function of config, workdir and the other options.
      parser: parser with the other options.
      read: builds the config from the file's value, or raises InputError.
      require_key: raises InputError for a change to a key that no config has.
      default_workdir: folder used by default; with None the user must give one.
      may_join: whether several processes may run it together; only the first prints.
    """
    parser.add_argument(
        "--config",
        help="a packaged config, such as demo, or the path of a config file; "
        "--config.section.key=value changes a value",
    )
    parser.add_argument(
        "--workdir",
        default=default_workdir,
        help="folder of the run, where results go"
        + (f" ({default_workdir})" if default_workdir else ""),
    )
    if may_join:
        _add_processes(parser)

    def start() -> None:
        args, changes = parser.parse_known_args()
        for word in changes:
            if word.startswith("--config."):
                require_key(word.removeprefix("--config.").partition("=")[0])
        if not args.workdir:
            raise InputError("--workdir is missing; give a folder, such as runs/demo")
        config = read(_load(args.config, changes))
        cli.keep_programs()
        joined = may_join and _connect(args)
        with _first_speaks() if joined else contextlib.nullcontext():
            main(config, os.path.expanduser(args.workdir), args)

    cli.run(start)


def _load(config: str | None, changes: list[str]) -> ConfigDict:
    """Loads a config file and applies the changes from the command line."""
    if not config:
        raise InputError("--config is missing; give one, such as --config=demo")
    given, colon, argument = config.partition(":")
    path = _file_of(given)
    argv = ["", f"--config={path}{colon}{argument}", *changes]
    # Separate from absl's global flags, which no program here uses.
    values = flags.FlagValues()
    config_flags.DEFINE_config_file("config", flag_values=values, sys_argv=argv)
    try:
        with warnings.catch_warnings():
            # How ml_collections loads a file; with -W error it would be an error.
            warnings.filterwarnings("ignore", "the load_module", DeprecationWarning)
            surplus = values(argv)[1:]
    except Exception as error:  # a config file is code, and may fail in any way
        raise InputError(_cause(error, path, config)) from error
    if surplus:
        raise InputError(
            f"{surplus[0]!r} is not an option; write options as --name=value"
        )
    loaded: Any = values["config"].value
    if not isinstance(loaded, ConfigDict):
        try:
            loaded.to_dict()
        except Exception as error:  # a file that failed to load raises on first use
            raise InputError(f"--config cannot be loaded: {error}") from error
    return loaded


def _file_of(given: str) -> str:
    """Finds a config file by path or name; an InputError suggests the nearest name."""
    if os.path.isfile(given):
        return given
    packaged = _CONFIGS / f"{given}.py"
    if packaged.is_file():
        return str(packaged)
    names = [
        str(p.relative_to(_CONFIGS).with_suffix("")) for p in _CONFIGS.rglob("*.py")
    ]
    wanted = given.removeprefix("configs/").removesuffix(".py")
    near = difflib.get_close_matches(wanted, names, n=1)
    hint = f"is it {near[0]}?" if near else "give a name such as demo"
    raise InputError(
        f"--config={given}: not a file in {os.getcwd()}, nor a config of the "
        f"package; {hint}"
    )


def _cause(error: BaseException, path: str, given: str) -> str:
    """Returns the message for options or a config file that failed."""
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
        return f"--config={given}: has no function get_config"
    # For keys of a network or a method.
    return f"--config has no key {_flat(error)}"


def _line_of(error: BaseException, path: str) -> int | None:
    """Returns the line where a file's code failed or is invalid; None if elsewhere."""
    if isinstance(error, SyntaxError) and error.filename == path:
        return error.lineno
    frames = traceback.extract_tb(error.__traceback__)
    lines = [frame.lineno for frame in frames if frame.filename == path]
    return lines[-1] if lines else None


def _flat(error: BaseException) -> str:
    """Puts an error's text on one line; ml_collections wraps some errors in others."""
    text: Any = error
    while isinstance(text, BaseException) and text.args:
        text = text.args[0]
    return " ".join(str(text).split())


def _add_processes(parser: Parser) -> None:
    group = parser.add_argument_group("several processes (docs/pods.md)")
    group.add_argument(
        "--distributed",
        action="store_true",
        help="this is one of several processes that make up one run: on every host "
        "of a TPU pod, or started by Slurm, Open MPI or Kubernetes, where JAX "
        "finds the others by itself",
    )
    group.add_argument(
        "--coordinator",
        help="HOST:PORT of process 0, if JAX cannot find it; with --num_processes and "
        "--process_id it replaces --distributed",
    )
    group.add_argument(
        "--num_processes", type=int, help="with --coordinator: number of processes"
    )
    group.add_argument(
        "--process_id", type=int, help="with --coordinator: index of this process"
    )


def _connect(args: argparse.Namespace) -> bool:
    """Connects to other processes if options ask for it; returns whether it did.

    It never guesses: the environment that Slurm and clouds leave in a login node or an
    interactive shell looks like many processes even if only one was started.
    """
    by_hand = (args.coordinator, args.num_processes, args.process_id)
    if args.coordinator and ":" not in args.coordinator:
        raise InputError(
            f"--coordinator={args.coordinator}: give HOST:PORT, such as 10.0.0.1:1234"
        )
    if None in by_hand and any(value is not None for value in by_hand):
        raise InputError(
            "--coordinator, --num_processes and --process_id belong together; give all "
            "three, or only --distributed if JAX can find the others"
        )
    if args.coordinator and not 0 <= args.process_id < args.num_processes:
        raise InputError(
            f"--process_id={args.process_id} is out of range: processes are numbered "
            f"from 0, and --num_processes={args.num_processes}"
        )
    joins = bool(args.distributed or args.coordinator)
    if joins:
        parallel.connect(*by_hand)
    return joins


@contextlib.contextmanager
def _first_speaks() -> Iterator[None]:
    """Silences messages and progress bars, but not errors, in all but one process."""
    if parallel.is_first():
        yield
        return
    with (
        open(os.devnull, "w") as nowhere,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(nowhere),
    ):
        yield
