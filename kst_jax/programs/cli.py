"""What every program does with mistakes, signals and pipes."""

import io
import os
import signal
import sys
from collections.abc import Callable

import jax
from absl import logging

from kst_jax.errors import InputError


def run(main: Callable[[], None], refusal: int = 1) -> None:
    """Runs a program; an InputError becomes one message, or with --debug a traceback.

    Options may be spelt with `-` for `_`.

    Args:
      main: the program.
      refusal: the exit code for a user's mistake.
    """
    debug = "--debug" in sys.argv
    sys.argv[1:] = [_spelt(word) for word in sys.argv[1:] if word != "--debug"]
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
        sys.exit(refusal)
    except jax.errors.JaxRuntimeError as error:
        if debug or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        print("docs/training.md tells what takes less memory", file=sys.stderr)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # as shells tell of it


def _spelt(word: str) -> str:
    """`--batch-sizes=1-2` as `--batch_sizes=1-2`; what is no option stays as it is."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
