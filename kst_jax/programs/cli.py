"""How every program handles user errors, signals and pipes."""

import io
import os
import signal
import sys
from collections.abc import Callable

import jax
from absl import logging

from kst_jax import parallel
from kst_jax.errors import InputError


def run(main: Callable[[], None], refusal: int = 1) -> None:
    """Runs a program; prints an InputError as one message, or --debug as a traceback.

    Options may have `-` in place of `_`.

    Args:
      main: the program.
      refusal: exit code for an InputError.
    """
    debug = "--debug" in sys.argv
    sys.argv[1:] = [_spelt(word) for word in sys.argv[1:] if word != "--debug"]
    # Line buffering: a closed pipe fails here, not when Python ends, and logs grow.
    if isinstance(sys.stdout, io.TextIOWrapper):  # not a caller's replacement
        # File names may contain bytes that are not valid text.
        sys.stdout.reconfigure(line_buffering=True, errors="backslashreplace")
    logging.set_verbosity(logging.FATAL)  # Orbax logs every step and error
    # As an exception, so that unfinished files are removed; training saves first.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    # Parameters, data and checkpoints are float32, whatever JAX_ENABLE_X64 says.
    jax.config.update("jax_enable_x64", False)
    try:
        main()
    except BrokenPipeError:  # `| head` has closed the pipe
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(141)  # the shells' code for it
    except (InputError, OSError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        sys.exit(refusal)
    except jax.errors.JaxRuntimeError as error:
        if debug or "RESOURCE_EXHAUSTED" not in str(error):
            raise
        print(f"error: {error}", file=sys.stderr)
        print("docs/training.md explains how to use less memory", file=sys.stderr)
        sys.exit(1)
    except (RuntimeError, AssertionError):
        # What fails without a device depends on the program and on JAX; why does not.
        lack = parallel.lack_of_devices()
        if debug or not lack:
            raise
        print(f"error: {lack}", file=sys.stderr)
        sys.exit(refusal)
    except KeyboardInterrupt:
        sys.exit(128 + signal.SIGINT)  # the shells' code for it


def keep_programs() -> None:
    """Caches compiled programs for the next start.

    JAX's own settings take precedence: JAX_COMPILATION_CACHE_DIR sets another folder,
    JAX_ENABLE_COMPILATION_CACHE=false turns the cache off.
    """
    if jax.config.values["jax_compilation_cache_dir"] is None:
        cache = os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache")
        if os.path.isabs(cache):  # false if a container's user has no home
            folder = os.path.join(cache, "kst_jax", "programs")
            jax.config.update("jax_compilation_cache_dir", folder)


def _spelt(word: str) -> str:
    """Turns `--batch-sizes=1-2` into `--batch_sizes=1-2`; keeps non-options."""
    if not word.startswith("--"):
        return word
    name, equals, value = word[2:].partition("=")
    return f"--{name.replace('-', '_')}{equals}{value}"
