"""Programs as a user starts them; mostly in this process: a start of Python is slow."""

import contextlib
import importlib
import io
import os
import runpy
import signal
import subprocess
import sys
import tomllib
import warnings
from concurrent.futures import Future
from unittest import mock

import pytest

from tests.conftest import ROOT

# A small run of train.py and eval.py.
TINY = [
    "--config=demo",
    "--config.data.size=(16,16)",
    "--config.data.slices=(0.4,0.55)",
    "--config.model.width=8",
    "--config.model.heads=2",
    "--config.model.mlp=8",
    "--config.model.hr_layers=1",
    "--config.model.lr_layers=1",
    "--config.model.encoder_layers=1",
    "--config.model.lr_size=(8,8)",
    "--config.model.refinement_features=4",
    "--config.model.refinement_layers=1",
    "--config.train.steps=4",
    "--config.train.warmup_steps=0",
    "--config.train.checkpoint_every=2",
    "--config.train.image_every=0",
]


# The programs of the installed package, by name.
PROGRAMS = {
    name: target.partition(":")[0]
    for name, target in tomllib.loads((ROOT / "pyproject.toml").read_text())["project"][
        "scripts"
    ].items()
}


def run_apart(program, *arguments, env=None):
    """Runs `python PROGRAM ARGUMENTS` in a process of its own."""
    return subprocess.run(
        [sys.executable, program, *map(str, arguments)],
        cwd=ROOT,
        env=env,
        capture_output=True,
        text=True,
    )


def refused(program, *arguments):
    """What a program says of a mistake of the user's."""
    done = run_here(program, *arguments)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: " in done.stderr
    return done.stderr


def run_here(program, *arguments, cwd=ROOT):
    """What a program does and prints: kst-NAME, or a file or module of Python's.

    What a process of its own would show as a traceback is raised.
    """
    start = runpy.run_path if program.endswith(".py") else runpy.run_module
    if program in PROGRAMS:
        start = main_of
    argv = [program, *map(str, arguments)]
    on_sigterm = signal.getsignal(signal.SIGTERM)
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
            signal.signal(signal.SIGTERM, on_sigterm)
    return subprocess.CompletedProcess(argv, code, stdout.getvalue(), stderr.getvalue())


def main_of(program, run_name):
    importlib.import_module(PROGRAMS[program]).main()


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
