"""The benchmark: its operation count, its cases, its command line."""

import dataclasses
import json
import os

import jax
import numpy as np
import pytest

from kst_jax.benchmark import measuring
from kst_jax.benchmark.command import table
from kst_jax.benchmark.operation_counts import network_flops
from kst_jax.config import Config
from kst_jax.data_config import DataConfig
from kst_jax.errors import InputError
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.models.tv import TVConfig
from kst_jax.patches import Layout
from kst_jax.programs import processes
from tests.programs import Inline, run_here

pytestmark = pytest.mark.slow

PROGRAM = ("kst-benchmark", "--config=demo")
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
    batch = measuring.example(config, 1)
    network = KSpaceTransformer(model)
    params = jax.eval_shape(network.init, jax.random.key(0), batch)
    cost = jax.jit(network.apply).lower(params, batch).compile().cost_analysis()
    share = measuring.Case("forward", config).flops / cost["flops"]
    assert 0.9 < share < 1  # it also counts LayerNorm, softmax and activations


def products(*shapes):
    """Operations of matrix products of (rows, inner) with (inner, columns)."""
    return sum(2 * rows * inner * columns for rows, inner, columns in shapes)


WIDTH, MLP, SAMPLED, LOW, PIXELS, FEATURES = 8, 24, 50, 4 * 3, 16 * 12, 5
QUERIES = PIXELS - SAMPLED


def attending(queries, keys):
    ends = products(*2 * [(queries, WIDTH, WIDTH)], *2 * [(keys, WIDTH, WIDTH)])
    return ends + products((queries, WIDTH, keys), (queries, keys, WIDTH))


def fed_forward(tokens):
    return products((tokens, WIDTH, MLP), (tokens, MLP, WIDTH))


def head(tokens):
    return products((tokens, WIDTH, WIDTH), (tokens, WIDTH, 2))


def refinement_and_embedding():
    convolutions = products(
        (PIXELS, 9 * 2, FEATURES),
        *2 * [(PIXELS, 9 * FEATURES, FEATURES)],
        (PIXELS, FEATURES, 2),
    )
    return convolutions + products((QUERIES, 2, WIDTH), (QUERIES, WIDTH, WIDTH))


LAYERS = {
    "encoder_layers": attending(SAMPLED, SAMPLED) + fed_forward(SAMPLED),
    "lr_layers": attending(LOW, SAMPLED)
    + attending(LOW, LOW)
    + fed_forward(LOW)
    + head(LOW),
    "hr_layers": attending(QUERIES, LOW)
    + fed_forward(QUERIES)
    + head(QUERIES)
    + refinement_and_embedding(),
}


@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_of_a_stack_counts(name):
    config = KSTConfig(
        width=WIDTH,
        mlp=MLP,
        encoder_layers=1,
        lr_layers=1,
        hr_layers=1,
        lr_size=(4, 3),
        refinement_features=FEATURES,
        refinement_layers=3,
    )

    def flops(count):
        model = dataclasses.replace(config, **{name: count})
        return network_flops(model, Layout(SAMPLED, SAMPLED), (16, 12))

    assert flops(3) - flops(1) == 2 * LAYERS[name]


def test_attention_in_hybrid_space_counts():
    config = KSTConfig(
        width=WIDTH, mlp=MLP, transformer=False, refinement=False, hr_layers=1
    )
    layout = Layout(SAMPLED, SAMPLED)
    without, having = (
        network_flops(dataclasses.replace(config, hybrid=hybrid), layout, (16, 12))
        for hybrid in (False, True)
    )
    # real and imaginary parts and the mask
    embedded = products((PIXELS, 3, WIDTH), (PIXELS, WIDTH, WIDTH))
    again = products((QUERIES, 2, WIDTH), (QUERIES, WIDTH, WIDTH))
    rows = 16 * attending(12, 12)
    wanted = embedded + rows + fed_forward(PIXELS) + head(PIXELS) + again
    assert having - without == wanted


def test_a_step_is_measured_and_summed_up(monkeypatch):
    monkeypatch.setattr(measuring, "_MATRIX", 64)
    model = dataclasses.replace(SMALL.model, width=16, mlp=16, attention="auto")
    config = dataclasses.replace(SMALL, model=model)
    case = measuring.Case("train step", config, batch=2, devices=(2, 1), calls=2)
    found = measuring.measure(case)
    assert found["mesh"] == {"data": 2, "query": 1}
    assert len(found["seconds"]) == 2
    assert found["compile_s"] > 0 < found["temporary_bytes"]
    row = measuring.summary(case, [found, found])
    assert row["median_s"] == np.median(found["seconds"])
    assert row["flops"] == 6 * measuring.Case("forward", config).flops
    assert "| train step | 32x32 | 2 |" in table([row])


def test_a_summary_is_of_all_rounds():
    model = dataclasses.replace(SMALL.model, remat="layers")
    case = measuring.Case("forward", dataclasses.replace(SMALL, model=model), batch=3)
    first = {
        "device": "first",
        "mesh": {"data": 3, "query": 1},
        "compile_s": 7.0,
        "seconds": [4.0, 2.0, 8.0],
        "flops_counted_by_xla": 1e6,
        "matrix_product_flops_per_s": 3e9,
        "temporary_bytes": 1000,
        "peak_bytes": 5000,
    }
    second = {
        "device": "second",
        "mesh": {"data": 1, "query": 3},
        "compile_s": 6.0,
        "seconds": [1.0, 3.0],
        "flops_counted_by_xla": 2e6,
        "matrix_product_flops_per_s": 4e9,
        "temporary_bytes": 2000,
        "peak_bytes": 6000,
    }
    batch = measuring.example(SMALL, 1)
    params = jax.eval_shape(KSpaceTransformer(model).init, jax.random.key(0), batch)
    sizes = [np.prod(leaf.shape, dtype=int) for leaf in jax.tree.leaves(params)]
    of_program = ("device", "mesh", "flops_counted_by_xla", "temporary_bytes")
    for one, other in ((first, second), (second, first)):
        assert measuring.summary(case, [one, other]) == {
            # What is the same in each round is the first one's.
            **{name: one[name] for name in of_program},
            "what": "forward",
            "size": (32, 32),
            "batch": 3,
            "dtype": "float32",
            "attention": "plain",
            "remat": "layers",
            "parameters": sum(sizes),
            "compile_s": 6.0,
            "seconds": one["seconds"] + other["seconds"],
            "median_s": np.median([4.0, 2.0, 8.0, 1.0, 3.0]),
            "min_s": 1.0,
            "max_s": 8.0,
            "images_per_s": 3 / 3.0,
            "flops": case.flops,
            "flops_per_s": case.flops / 3.0,
            "matrix_product_flops_per_s": 4e9,
            "share_of_matrix_product": case.flops / 3.0 / 4e9,
            "peak_bytes": 6000,
        }


def test_a_line_of_the_table_has_every_value_in_its_column():
    row = {
        "what": "forward",
        "size": (32, 48),
        "batch": 3,
        "dtype": "bfloat16",
        "attention": "blocked",
        "compile_s": 4.56,
        "median_s": 0.0123456,
        "min_s": 0.005,
        "max_s": 12.3456,
        "images_per_s": 12.0,
        "flops_per_s": 678e9,
        "share_of_matrix_product": 0.34,
        "temporary_bytes": 1.23e9,
        "peak_bytes": 9.87e9,
    }
    head, line, values = table([row]).splitlines()
    assert head == (
        "| what | size | batch | dtype | attention | compile s | median s (min-max) | "
        "images/s | GFLOP/s | of matrix product | temporary GB | peak GB |"
    )
    assert line == "|" + 12 * " --- |"
    assert values == (
        "| forward | 32x48 | 3 | bfloat16 | blocked | 4.6 | 0.01235 (0.005-12.35) | "
        "12.00 | 678 | 34% | 1.23 | 9.87 |"
    )


def test_operations_of_a_loop_are_not_made_up():
    case = measuring.Case("forward", dataclasses.replace(SMALL, model=TVConfig()))
    assert case.flops is None
    times = {"seconds": [0.1], "compile_s": 1.0, "matrix_product_flops_per_s": 1e9}
    used = {"temporary_bytes": 10**6, "peak_bytes": 10**8}
    row = measuring.summary(case, [times | used])
    assert "| - | - | 0.00 | 0.10 |" in table([row])


def test_devices_that_do_not_fit_are_refused():
    for devices in ((2, 1), (1, 3)):
        with pytest.raises(InputError, match="3 slices at a time and 8 devices"):
            measuring.measure(measuring.Case("forward", SMALL, 3, devices))
    with pytest.raises(InputError, match="only with --what=forward"):
        measuring.Case("train step", SMALL, 3, (1, 4))
    train = dataclasses.replace(SMALL.train, accumulate=2)
    config = dataclasses.replace(SMALL, train=train)
    with pytest.raises(InputError, match="not divide into 2 equal parts"):
        measuring.Case("train step", config, 3)


def whose_process(case):
    return case.batch, os.getpid()


def test_each_case_has_a_process_of_its_own(monkeypatch):
    monkeypatch.setattr(measuring, "measure", whose_process)
    cases = [measuring.Case("forward", SMALL, batch) for batch in (1, 2)]
    found = [measuring.measure_apart(case) for case in cases]
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
        ("--sweep=7", "--sweep: cannot use size 7: "),
        ("--attention=sparse", "model.attention='sparse' is out of range"),
        ("--what=backward", "unknown 'backward'; choose from forward"),
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
