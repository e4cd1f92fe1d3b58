"""train.py and eval.py as several processes: one run, whatever their number."""

import json
import os
import re
import shutil
import socket
import subprocess
import sys

import jax
import numpy as np
import pytest

from kst_jax.evaluation import evaluate
from kst_jax.runs.checkpoints import read_config, read_parameters
from kst_jax.training import loop
from tests.conftest import ROOT
from tests.programs import TINY

pytestmark = pytest.mark.slow

# What Gloo's threads say, a piece at a time and between each other's pieces.
GLOO = re.compile(
    r"\[Gloo\] Rank |\d+| is connected to | peer ranks\. "
    r"|Expected number of connected peer ranks is : "
)
RUN = [
    *TINY,
    "--config.model.lr_decoder=False",
    "--config.model.refinement=False",  # one stage, which compiles fast
    "--config.train.stages=(0,0,1)",
    "--config.train.steps=3",
    "--config.train.checkpoint_every=1",
    "--config.train.keep=3",
    "--config.train.image_every=3",
    "--config.train.log_every=1",
]


def free_port():
    with socket.socket() as one:
        one.bind(("localhost", 0))
        return one.getsockname()[1]


def run_both(program, *args):
    """Output and errors of two processes with two devices each."""
    joint = (f"--coordinator=localhost:{free_port()}", "--num_processes=2")
    processes = [
        subprocess.Popen(
            [sys.executable, program, *args, *joint, f"--process_id={number}"],
            cwd=ROOT,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "2"},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for number in range(2)
    ]
    try:
        said = [process.communicate(timeout=200) for process in processes]
    finally:
        for process in processes:
            process.kill()
    assert [process.returncode for process in processes] == [0, 0], said
    return said


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Folders of the same run by two processes and by one, and what the two said."""
    two, one = (tmp_path_factory.mktemp(name) for name in ("two", "one"))
    said = [
        run_both("train.py", *RUN, f"--workdir={two}"),
        run_both("eval.py", *RUN, f"--workdir={two}", "--config.eval.query_devices=2"),
    ]
    config = read_config(two)
    loop.train(config, one)  # 4 slices a step: on 4 of this process's devices
    evaluate.evaluate(config, one)
    return two, one, said


def test_two_processes_train_as_one(runs):
    two, one, _ = runs
    assert read_parameters(two)[1:] == read_parameters(one)[1:]
    for a, b in zip(
        *(jax.tree.leaves(read_parameters(run)[0]) for run in (two, one)), strict=True
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_one_process_carries_on_from_two(runs, tmp_path):
    two = runs[0]
    shutil.copytree(two, tmp_path / "run")
    for step in (2, 3):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / str(step))
    loop.train(read_config(two), tmp_path / "run")
    for a, b in zip(
        *(jax.tree.leaves(read_parameters(x)[0]) for x in (tmp_path / "run", two)),
        strict=True,
    ):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5 * np.abs(b).max())


def test_two_processes_evaluate_as_one(runs):
    found, wanted = (
        json.loads((run / "eval" / "metrics.json").read_text()) for run in runs[:2]
    )
    assert found["step"] == wanted["step"] == 3
    assert found["slices"]["count"] % 4  # the last batch is shared unevenly
    numbers = [row["slice"] for row in found["per_slice"]]
    assert numbers == [row["slice"] for row in wanted["per_slice"]]
    for name in ("slices", "volumes", "per_slice"):
        paired = zip(
            jax.tree.leaves(found[name]), jax.tree.leaves(wanted[name]), strict=True
        )
        for a, b in paired:
            assert a == (b if isinstance(b, str) else pytest.approx(b, rel=1e-4))


def test_the_first_process_alone_writes_and_speaks(runs):
    two, one, said = runs
    files = [
        {path.name for path in run.rglob("*") if "checkpoints" not in path.parts}
        for run in (two, one)
    ]
    assert len(list((two / "tensorboard").iterdir())) == 1
    without_events = [{n for n in names if "events" not in n} for names in files]
    assert without_events[0] == without_events[1]
    rows = (two / "train.jsonl").read_text().splitlines()
    assert [json.loads(row)["step"] for row in rows] == [1, 2, 3]
    (first, second), evaluated = said
    for (_, errors), bar in ((first, "Training:"), (evaluated[0], "Evaluating:")):
        assert bar in errors
    assert "Training on" in first[0]
    assert "zero-filled" in evaluated[0][0]
    for output, errors in (second, evaluated[1]):
        assert not GLOO.sub("", output).split()
        assert "Training" not in errors
        assert "Evaluating" not in errors
