"""Programs in this process, as `python` would run them: a start of Python is slow."""

import contextlib
import io
import os
import runpy
import subprocess
import sys
import warnings
from concurrent.futures import Future
from unittest import mock

import pytest
from absl import flags

from tests.conftest import ROOT


def run_here(program, *arguments, cwd=ROOT):
    """What `python PROGRAM ARGUMENTS`, or `python -m` of a module, does and prints.

    What a process of its own would show as a traceback is raised.
    """
    start = runpy.run_path if program.endswith(".py") else runpy.run_module
    argv = [program, *map(str, arguments)]
    with (
        contextlib.redirect_stdout(io.StringIO()) as stdout,
        contextlib.redirect_stderr(io.StringIO()) as stderr,
        contextlib.chdir(cwd),
        mock.patch.dict(os.environ),
        pytest.MonkeyPatch.context() as patch,
    ):
        patch.setattr(sys, "argv", argv)
        patch.delitem(sys.modules, program, raising=False)  # as if it were new
        try:
            code = _exit_code(start, program)
        finally:
            _forget_flags()
    return subprocess.CompletedProcess(argv, code, stdout.getvalue(), stderr.getvalue())


def _exit_code(start, program):
    try:
        with warnings.catch_warnings(action="ignore"):  # as Python does by itself
            start(program, run_name="__main__")
    except SystemExit as ended:
        if not isinstance(ended.code, str):
            return ended.code or 0
        print(ended.code, file=sys.stderr)
        return 1
    return 0


def _forget_flags():
    """Lets the next program define its own."""
    own = {flag.name for flag in flags.FLAGS.get_key_flags_for_module(sys.argv[0])}
    own |= {name for name in flags.FLAGS if name.startswith("config")}
    for name in own & set(flags.FLAGS):
        delattr(flags.FLAGS, name)


class Inline:
    """Worker processes that are this one."""

    map = staticmethod(map)

    def __init__(self, workers):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *_):
        pass

    def submit(self, function, *args):
        function.__globals__["_MATRIX"] = 16  # of the benchmark: a smaller product
        future = Future()
        future.set_result(function(*args))
        return future
