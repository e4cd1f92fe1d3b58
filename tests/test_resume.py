"""Runs that are killed, stopped or out of disk, and carry on as if nothing had been."""

import itertools
import json
import os
import resource
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from kst_jax.runs import integrity
from kst_jax.training.interruption import Interruption
from kst_jax.training.logs import Logs
from kst_jax.training.loop import train
from tests.conftest import ROOT
from tests.programs import TINY as FLAGS
from tests.test_training import with_train

STEPS = 34
RUN = [
    *FLAGS,
    "--config.model.refinement=False",  # two stages, which compile fast
    f"--config.train.steps={STEPS}",
    "--config.train.checkpoint_every=4",
    "--config.train.log_every=1",
    "--config.train.keep=2",
]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory):
    """Environment in which programs are compiled once for all runs."""
    return os.environ | {
        "JAX_COMPILATION_CACHE_DIR": str(tmp_path_factory.mktemp("compiled")),
        "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
    }


def start(workdir, environment, *changes):
    return subprocess.Popen(
        [sys.executable, "train.py", *RUN, f"--workdir={workdir}", *changes],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )


def finish(workdir, environment):
    process = start(workdir, environment)
    _, errors = process.communicate()
    assert process.returncode == 0, errors


def row_count(workdir):
    path = workdir / "train.jsonl"
    return path.read_text().count("\n") if path.exists() else 0


def wait_for(condition, process):
    while not condition():
        assert process.poll() is None, process.communicate()[1]
        time.sleep(0.0005)


def end(process, number):
    if number == signal.SIGKILL:
        process.send_signal(number)
    else:  # as a terminal or `timeout` does, to its workers as well
        os.killpg(process.pid, number)
    # Its workers hold the pipes as well: they must end, too.
    output, errors = process.communicate(timeout=120)
    return process.returncode, output, errors


def after_row(count, workdir, process, number):
    """Sends a signal once so many rows are logged, and more than when it started."""
    count = max(count, row_count(workdir) + 1)
    wait_for(lambda: row_count(workdir) >= count, process)
    return end(process, number)


def while_writing(workdir, process, number):
    """Sends it in the middle of a checkpoint, having held the process to make sure."""
    temporary = "checkpoints/*.orbax-checkpoint-tmp"
    while True:
        wait_for(lambda: list(workdir.glob(temporary)), process)
        process.send_signal(signal.SIGSTOP)
        if list(workdir.glob(temporary)):
            return end(process, number)
        process.send_signal(signal.SIGCONT)


def out_of_disk(process):
    """Lets no file grow beyond a size: the error is like that of a full disk."""
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (15_000, limit))
    _, errors = process.communicate()
    return process.returncode, errors


def latest(workdir):
    """The latest checkpoint's step; it is whole."""
    step = integrity.steps_in(workdir / "checkpoints")[0]
    assert integrity.damage(workdir / "checkpoints" / str(step)) is None
    return step


def outcome(workdir):
    """All arrays of the last checkpoint, and the log."""
    assert latest(workdir) == STEPS
    path = workdir / "checkpoints" / str(STEPS)
    items = {name: ocp.args.StandardRestore() for name in ("params", "ema", "training")}
    reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    found = reader.restore(path, args=ocp.args.Composite(**items))
    reader.close()
    return {name: found[name] for name in items}, (workdir / "train.jsonl").read_text()


@pytest.mark.slow
def test_interrupted_again_and_again_a_run_ends_as_if_it_never_was(compiled, tmp_path):
    whole, run = tmp_path / "whole", tmp_path / "run"
    finish(whole, compiled)
    log = outcome(whole)[1]
    steps = [json.loads(row)["step"] for row in log.splitlines()]
    assert steps == list(range(1, STEPS + 1))

    code, *_ = while_writing(run, start(run, compiled), signal.SIGKILL)
    assert code == -signal.SIGKILL
    assert list(run.glob("checkpoints/*.orbax-checkpoint-tmp"))

    process = start(run, compiled, "--config.data.workers=1")
    code, _, errors = after_row(5, run, process, signal.SIGTERM)
    assert code == 0, errors
    assert "Traceback" not in errors
    step = latest(run)
    assert 5 <= step < STEPS
    assert row_count(run) == step
    assert f"The same command resumes from {run}/checkpoints/{step}\n" in errors

    code, errors = out_of_disk(start(run, compiled))
    assert code == 1
    # Orbax's threads may print around it.
    assert f"error: {run}/checkpoints: a checkpoint cannot be written (" in errors
    assert f"The last good one is {run}/checkpoints/{step};" in errors
    assert latest(run) == step

    process = start(run, compiled, "--config.data.workers=1")
    code, output, errors = after_row(step + 1, run, process, signal.SIGINT)
    assert code == 130
    assert f"Resuming from {run}/checkpoints/{step}\n" in output
    assert "Traceback" not in errors
    later = latest(run)
    assert step < later < STEPS
    assert f"The same command resumes from {run}/checkpoints/{later}\n" in errors

    count = later + np.random.default_rng().integers(1, 4)
    process = start(run, compiled, "--config.data.workers=1")
    code, *_ = after_row(count, run, process, signal.SIGKILL)
    assert code == -signal.SIGKILL, f"when {count} rows were logged"

    finish(run, compiled)
    jax.tree.map(np.testing.assert_array_equal, outcome(run), outcome(whole))
    kept = sorted(path.name for path in (run / "checkpoints").iterdir())
    assert kept == [str(STEPS - 2), str(STEPS)]


def send_at(step, number, monkeypatch):
    """Sends a signal to this process when a row of the logs is written."""
    scalars = Logs.scalars

    def write_and_send(self, at, values):
        scalars(self, at, values)
        if at == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Logs, "scalars", write_and_send)


@pytest.mark.slow
def test_control_c_propagates_after_saving(tmp_path, monkeypatch, capfd):
    """As a notebook needs it, which goes on afterwards."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    send_at(2, signal.SIGINT, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(with_train(steps=9, stages=(0.8, 0.0, 0.2), image_every=0), tmp_path)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    told = capfd.readouterr().err
    assert "SIGINT: saving and stopping" in told
    step = latest(tmp_path)
    assert step in (2, 3)
    assert f"resumes from {tmp_path}/checkpoints/{step}" in told


def test_a_thread_that_gets_no_signals_takes_none():
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]

    def loop():
        with Interruption() as interruption:
            handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
            return handlers, interruption.requested()

    with ThreadPoolExecutor(1) as threads:
        assert threads.submit(loop).result() == (before, False)


def test_a_second_control_c_interrupts_at_once():
    before = signal.getsignal(signal.SIGINT)
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested()
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) == before


def test_nothing_is_obeyed_that_was_not_requested(capsys):
    with Interruption() as interruption:
        assert not interruption.requested()
    interruption.obey("stopped")
    assert capsys.readouterr().err == ""


def test_several_processes_stop_where_jax_says(monkeypatch, capsys):
    """Signals stay JAX's, which sees to it that all stop after the same step."""
    before = signal.getsignal(signal.SIGTERM)
    monkeypatch.setattr(jax, "process_count", lambda: 2)
    monkeypatch.setattr(
        multihost_utils, "reached_preemption_sync_point", lambda step: step == 3
    )
    with Interruption() as interruption:
        assert signal.getsignal(signal.SIGTERM) is before
        asked = itertools.takewhile(
            lambda n: not interruption.requested(), itertools.count(1)
        )
        assert list(asked) == [1, 2]
    with pytest.raises(SystemExit) as ended:
        interruption.obey("stopped")
    assert ended.value.code == 0
    assert capsys.readouterr().err == "stopped\n"
