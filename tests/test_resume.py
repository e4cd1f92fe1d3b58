"""Runs that are killed, stopped or out of disk, and carry on as if nothing had been."""

import itertools
import json
import os
import resource
import shutil
import signal
import subprocess
import sys
import threading
import time

import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from jax.experimental import multihost_utils

from kst_jax import integrity
from kst_jax.interruption import Interruption
from kst_jax.logs import Logs
from kst_jax.training import train
from tests.conftest import ROOT
from tests.test_cli import TINY as FLAGS
from tests.test_training import with_train

STEPS = 30
RUN = [
    *FLAGS,
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


def start(workdir, environment, **options):
    return subprocess.Popen(
        [sys.executable, "train.py", *RUN, f"--workdir={workdir}"],
        cwd=ROOT,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        **options,
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
    process.send_signal(number)
    output, errors = process.communicate()
    return process.returncode, output, errors


def kill_while_writing(process, workdir):
    """Kills in the middle of a checkpoint: it is held while one looks where it is."""
    temporary = "checkpoints/*.orbax-checkpoint-tmp"
    while True:
        wait_for(lambda: list(workdir.glob(temporary)), process)
        process.send_signal(signal.SIGSTOP)
        if list(workdir.glob(temporary)):
            break
        process.send_signal(signal.SIGCONT)
    assert end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    assert list(workdir.glob(temporary))


def outcome(workdir):
    """Every file's arrays of the last checkpoint, and the logs."""
    path = workdir / "checkpoints" / str(STEPS)
    assert integrity.damage(path) is None
    items = {name: ocp.args.StandardRestore() for name in ("params", "ema", "training")}
    reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    found = reader.restore(path, args=ocp.args.Composite(**items))
    reader.close()
    return {name: found[name] for name in items}, (workdir / "train.jsonl").read_text()


@pytest.fixture(scope="module")
def whole(tmp_path_factory, compiled):
    """What a run that is never interrupted ends with."""
    workdir = tmp_path_factory.mktemp("whole") / "run"
    finish(workdir, compiled)
    arrays, log = outcome(workdir)
    assert [json.loads(row)["step"] for row in log.splitlines()] == [
        *range(1, STEPS + 1)
    ]
    return arrays, log


def require_same(found, wanted):
    assert found[1] == wanted[1]
    jax.tree.map(np.testing.assert_array_equal, found[0], wanted[0])


def test_killed_again_and_again(whole, compiled, tmp_path):
    """Before the first checkpoint, at any step, while writing, at any step, ..."""
    rng = np.random.default_rng()
    first, later = rng.integers(1, 4), rng.integers(10, 20)
    print(f"killed after rows {first} and {later}")
    process = start(tmp_path, compiled)
    wait_for(lambda: row_count(tmp_path) >= first, process)
    assert end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    kill_while_writing(start(tmp_path, compiled), tmp_path)
    process = start(tmp_path, compiled)
    wait_for(lambda: row_count(tmp_path) >= later, process)
    assert end(process, signal.SIGKILL)[0] == -signal.SIGKILL
    kill_while_writing(start(tmp_path, compiled), tmp_path)
    finish(tmp_path, compiled)
    require_same(outcome(tmp_path), whole)
    kept = sorted(path.name for path in (tmp_path / "checkpoints").iterdir())
    assert kept == ["28", "30"]


@pytest.fixture(scope="module")
def stopped(tmp_path_factory, compiled):
    """The folder of a run that SIGTERM stopped."""
    workdir = tmp_path_factory.mktemp("stopped")
    process = start(workdir, compiled)
    wait_for(lambda: row_count(workdir) >= 5, process)
    return workdir, end(process, signal.SIGTERM)


def test_sigterm_and_control_c_save_and_stop(whole, compiled, stopped, tmp_path):
    workdir, (code, _, errors) = stopped
    assert code == 0, errors
    step = integrity.steps_in(workdir / "checkpoints")[0]
    assert 5 <= step < STEPS
    assert row_count(workdir) == step
    assert f"The same command carries on from {workdir}/checkpoints/{step}" in errors
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    process = start(tmp_path, compiled)
    wait_for(lambda: row_count(tmp_path) > step, process)
    code, output, errors = end(process, signal.SIGINT)
    assert code == 130, errors
    assert f"Carrying on from {tmp_path}/checkpoints/{step}\n" in output
    assert "Traceback" not in errors
    later = integrity.steps_in(tmp_path / "checkpoints")[0]
    assert step < later < STEPS
    assert f"The same command carries on from {tmp_path}/checkpoints/{later}" in errors
    finish(tmp_path, compiled)
    require_same(outcome(tmp_path), whole)


def test_a_full_disk(compiled, stopped, tmp_path):
    """Files may not grow beyond a size: an error like that of a disk without space."""
    workdir, _ = stopped
    shutil.copytree(workdir, tmp_path, dirs_exist_ok=True)
    step = integrity.steps_in(workdir / "checkpoints")[0]
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
    process = start(
        tmp_path,
        compiled,
        preexec_fn=lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (15_000, limit)),
    )
    _, errors = process.communicate()
    assert process.returncode == 1
    message = next(x for x in errors.splitlines() if x.startswith("error: "))
    assert "cannot be written" in message
    assert f"The last good one is {tmp_path}/checkpoints/{step};" in message
    assert "Traceback" not in errors
    assert integrity.steps_in(tmp_path / "checkpoints")[0] == step
    assert integrity.damage(tmp_path / "checkpoints" / str(step)) is None


def send_at(step, number, monkeypatch):
    """Sends a signal to this process when a row of the logs is written."""
    scalars = Logs.scalars

    def write_and_send(self, at, values):
        scalars(self, at, values)
        if at == step:
            os.kill(os.getpid(), number)

    monkeypatch.setattr(Logs, "scalars", write_and_send)


SHORT = {"steps": 3, "stages": (0.0, 0.0, 1.0), "image_every": 0}


def test_control_c_propagates_after_saving(tmp_path, monkeypatch, capsys):
    """As a notebook needs it, which goes on afterwards."""
    before = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    send_at(2, signal.SIGINT, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        train(with_train(**SHORT), tmp_path)
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == before
    told = capsys.readouterr().err
    assert "SIGINT: saving and stopping" in told
    step = integrity.steps_in(tmp_path / "checkpoints")[0]
    assert step in (2, 3)
    assert f"carries on from {tmp_path}/checkpoints/{step}" in told


def test_training_in_a_thread(tmp_path):
    states = []
    thread = threading.Thread(
        target=lambda: states.append(train(with_train(**SHORT), tmp_path))
    )
    thread.start()
    thread.join()
    assert int(states[0].step) == 3


def test_a_second_control_c_interrupts_at_once():
    with Interruption() as interruption:
        os.kill(os.getpid(), signal.SIGINT)
        assert interruption.requested(1)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_nothing_is_obeyed_that_was_not_requested(capsys):
    with Interruption() as interruption:
        assert not interruption.requested(1)
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
            lambda n: not interruption.requested(n), itertools.count(1)
        )
        assert list(asked) == [1, 2]
    with pytest.raises(SystemExit) as ended:
        interruption.obey("stopped")
    assert ended.value.code == 0
    assert capsys.readouterr().err == "stopped\n"
