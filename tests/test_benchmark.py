"""The benchmark: its operation count, its cases, its command line."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from kst_jax import benchmark, processes, speed
from kst_jax.config import Config, DataConfig
from kst_jax.errors import InputError
from kst_jax.models.kst import KSpaceTransformer, KSTConfig
from kst_jax.models.tv import TVConfig
from tests.programs import Inline, run_here

PROGRAM = ("kst_jax.benchmark", "--config=configs/demo.py")
SMALL = Config(
    data=DataConfig(size=(32, 32)),
    # One layer each: XLA counts the body of a loop once, however often it runs.
    model=KSTConfig(
        width=64,
        mlp=128,
        encoder_layers=1,
        lr_layers=1,
        hr_layers=1,
        lr_size=(16, 16),
        refinement_features=16,
        attention="plain",
    ),
)


@pytest.mark.parametrize("ablation", [{}, {"lr_decoder": False}, {"refinement": False}])
def test_operations_are_those_that_xla_counts(ablation):
    model = dataclasses.replace(SMALL.model, **ablation)
    config = dataclasses.replace(SMALL, model=model)
    batch = speed.example(config, 1)
    network = KSpaceTransformer(model)
    params = jax.eval_shape(network.init, jax.random.key(0), batch)
    cost = jax.jit(network.apply).lower(params, batch).compile().cost_analysis()
    share = speed.Case("forward", config).flops / cost["flops"]
    assert 0.9 < share < 1  # it also counts LayerNorm, softmax and activations


def test_a_step_is_measured_and_summed_up(monkeypatch):
    monkeypatch.setattr(speed, "_MATRIX", 64)
    model = dataclasses.replace(SMALL.model, width=16, mlp=16, attention="auto")
    config = dataclasses.replace(SMALL, model=model)
    case = speed.Case("train step", config, batch=2, devices=(2, 1), calls=2)
    found = speed.measure(case)
    assert found["mesh"] == {"data": 2, "query": 1}
    assert len(found["seconds"]) == 2
    assert found["compile_s"] > 0 < found["temporary_bytes"]
    row = speed.summary(case, [found, found])
    assert row["median_s"] == np.median(found["seconds"])
    assert row["images_per_s"] == 2 / row["median_s"]
    assert row["flops"] == 6 * speed.Case("forward", config).flops
    assert "| train step | 32x32 | 2 |" in benchmark.table([row])


def test_operations_of_a_loop_are_not_made_up():
    case = speed.Case("forward", dataclasses.replace(SMALL, model=TVConfig()))
    assert case.flops is None
    times = {"seconds": [0.1], "compile_s": 1.0, "matrix_product_flops_per_s": 1e9}
    used = {"temporary_bytes": 10**6, "peak_bytes": 10**8}
    row = speed.summary(case, [times | used])
    assert "| - | - | 0.00 | 0.10 |" in benchmark.table([row])


def test_devices_that_do_not_fit_are_refused():
    for devices in ((2, 1), (1, 3)):
        with pytest.raises(InputError, match="3 slices at a time and 8 devices"):
            speed.measure(speed.Case("forward", SMALL, 3, devices))
    with pytest.raises(InputError, match="only with --what=forward"):
        speed.Case("train step", SMALL, 3, (1, 4))
    train = dataclasses.replace(SMALL.train, accumulate=2)
    config = dataclasses.replace(SMALL, train=train)
    with pytest.raises(InputError, match="no 2 equal parts"):
        speed.Case("train step", config, 3)


def whose_process(case):
    return case.batch, os.getpid()


def test_each_case_has_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(speed, "measure", whose_process)
    cases = [speed.Case("forward", SMALL, batch) for batch in (1, 2)]
    found = [speed.measure_apart(case) for case in cases]
    assert [batch for batch, _ in found] == [1, 2]
    assert len({os.getpid(), *(process for _, process in found)}) == 3


def test_command_line_sweeps_sizes(tmp_path, monkeypatch):
    monkeypatch.setattr(processes, "pool", Inline)
    model = ["width=16", "mlp=16", "encoder_layers=1", "lr_layers=1", "hr_layers=1"]
    found = run_here(
        *PROGRAM,
        f"--workdir={tmp_path}",
        "--sweep=16,24",
        "--calls=1",
        "--precision=bfloat16",
        "--pipeline=0.1",
        *(f"--config.model.{change}" for change in model),
    )
    assert found.returncode == 0, found.stderr
    written = json.loads((tmp_path / "benchmark.json").read_text())
    assert written["pipeline_slices_per_s"] > 0
    results = written["results"]
    assert [r["size"] for r in results] == [[16, 16], [24, 24]]
    assert all(r["dtype"] == "bfloat16" and r["peak_bytes"] > 1e7 for r in results)
    assert "| forward | 24x24 | 1 | bfloat16 |" in found.stdout
    assert (tmp_path / "sweep.png").stat().st_size > 1000
    other = run_here(*PROGRAM, f"--workdir={tmp_path}", "--sweep=16,24", "--calls=1")
    assert other.returncode == 1
    assert f"{tmp_path}/benchmark.json: holds other measurements" in other.stderr
    assert json.loads((tmp_path / "benchmark.json").read_text()) == written


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        ("--batch-sizes=many", "'many' is not a whole number"),
        ("--sweep=17", "--sweep: 17 cannot be: "),
        ("--attention=sparse", "model.attention='sparse' is out of range"),
        ("--what=backward", "none of forward"),
        ("--what=", "nothing to measure"),
        ("--mesh=1x4", "--mesh=1x4: only with --what=forward"),
        ("--mesh=2", "--mesh=2: give DATAxQUERY, such as 8x1"),
        (f"--workdir={__file__}", "cannot be a folder"),
    ],
)
def test_mistakes_are_told(flag, message, tmp_path):
    found = run_here(*PROGRAM, f"--workdir={tmp_path}", flag)
    assert found.returncode == 1
    assert message in found.stderr
