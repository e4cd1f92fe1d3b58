"""Training as a whole: stages, optimiser, resuming, devices, failures."""

import dataclasses
import json
import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from kst_jax import parallel
from kst_jax.benchmark.measuring import example
from kst_jax.config import Config, TrainConfig
from kst_jax.data import finding
from kst_jax.data_config import DataConfig
from kst_jax.errors import DivergedError, InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.models.registry import build
from kst_jax.models.tv import TVConfig
from kst_jax.runs.checkpoints import read_parameters
from kst_jax.stages import first_steps, reached, require_trained, stage_at
from kst_jax.training import loop, optimizers

TINY = Config(
    data=DataConfig(
        train="demo:train",
        test="demo:test",
        size=(16, 16),
        crop=(176, 176),
        pad=True,
        slices=(0.4, 0.6),
    ),
    mask=MaskConfig(acceleration=4.0),
    model=KSTConfig(
        width=8,
        heads=2,
        mlp=8,
        encoder_layers=1,
        lr_layers=1,
        hr_layers=1,
        lr_size=(8, 8),
        refinement_features=4,
        refinement_layers=1,
    ),
    train=TrainConfig(
        steps=12, batch_size=8, log_every=1, checkpoint_every=5, image_every=6, ema=0.9
    ),
)


def with_train(**changes):
    return dataclasses.replace(TINY, train=dataclasses.replace(TINY.train, **changes))


def rows(workdir):
    lines = (workdir / "train.jsonl").read_text().splitlines()
    return [json.loads(line) for line in lines]


@pytest.fixture(scope="module")
def finished(tmp_path_factory):
    workdir = tmp_path_factory.mktemp("finished")
    return workdir, loop.train(TINY, workdir)


def test_stages_follow_each_other(finished):
    workdir, state = finished
    assert int(state.step) == 12
    assert [row["step"] for row in rows(workdir)] == list(range(1, 13))
    assert [row["stage"] for row in rows(workdir)] == ["LR"] * 3 + ["K"] * 3 + [
        "RM"
    ] * 6
    assert all(np.isfinite(row["loss"]) for row in rows(workdir))
    assert list((workdir / "tensorboard").glob("events*"))


def test_a_finished_run_trains_no_further(finished):
    workdir, whole = finished
    before = rows(workdir)
    state = loop.train(TINY, workdir)
    assert rows(workdir) == before
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state, whole)))


def test_a_finished_run_is_not_taken_for_one_of_a_replaced_scan(finished, tmp_path):
    run, scan = tmp_path / "run", tmp_path / "sub-0017_T1w.nii.gz"
    shutil.copytree(finished[0], run)
    scan.write_bytes(finding.DEMO["demo:train"].read_bytes() + bytes(1))
    record = json.loads((run / "training_files.json").read_text())
    assert record["scans"]["sub-0017_T1w"]["bytes"] == scan.stat().st_size - 1
    (run / "config.json").write_text(
        (run / "config.json").read_text().replace("demo:train", str(scan))
    )
    config = dataclasses.replace(
        TINY, data=dataclasses.replace(TINY.data, train=str(scan))
    )
    with pytest.raises(InputError, match=r"sub-0017_T1w differs\. Put the files back"):
        loop.train(config, run)


def test_what_does_not_change_a_run_may_change(finished):
    workdir, whole = finished
    before = rows(workdir)
    changed = with_train(log_every=7, keep=9)
    model = dataclasses.replace(changed.model, remat="layers")
    state = loop.train(dataclasses.replace(changed, model=model), workdir)
    assert rows(workdir) == before
    jax.tree.map(np.testing.assert_array_equal, state.params, whole.params)


def test_another_config_does_not_overwrite_a_run(finished):
    with pytest.raises(
        InputError, match=r"train\.learning_rate is 0\.0005 there and 0\.1"
    ):
        loop.train(with_train(learning_rate=0.1), finished[0])


def test_the_moving_average_is_what_is_evaluated(finished):
    workdir, state = finished
    params, config, step = read_parameters(workdir)
    assert (config, step) == (TINY, 12)
    jax.tree.map(np.testing.assert_array_equal, params, state.ema)
    differ = jax.tree.map(lambda a, b: not np.array_equal(a, b), params, state.params)
    assert any(jax.tree.leaves(differ))


def test_old_checkpoints_go(finished):
    kept = {p.name for p in (finished[0] / "checkpoints").iterdir() if p.is_dir()}
    assert kept == {"10", "12"}


@pytest.mark.slow
def test_what_is_not_finite_stops_the_run_and_is_not_saved(tmp_path, monkeypatch):
    class Poisoned:
        """The stream, whose sixth batch holds an overflow."""

        def __init__(self, stream):
            self.stream, self.count = stream, 0

        def __next__(self):
            self.count += 1
            batch = next(self.stream)
            factor = np.float32(1e30 if self.count == 6 else 1)
            return batch.replace(image=batch.image * factor)

    run = loop._Loop.run
    monkeypatch.setattr(
        loop._Loop,
        "run",
        lambda self, state, batches: run(self, state, Poisoned(batches)),
    )
    message = r"is (inf|nan) at step 6.*checkpoints/4"
    with pytest.raises(DivergedError, match=message):
        loop.train(with_train(checkpoint_every=2), tmp_path)
    params, _, step = read_parameters(tmp_path)
    assert step == 4
    assert all(np.isfinite(x).all() for x in jax.tree.leaves(params))


@pytest.mark.parametrize(
    ("stages", "has", "wanted"),
    [
        ((0.25, 0.25, 0.5), ("LR", "K", "RM"), {"LR": 0, "K": 25, "RM": 50}),
        ((0.25, 0.25, 0.5), ("K", "RM"), {"K": 0, "RM": 50}),
        ((0.25, 0.25, 0.5), ("LR", "K"), {"LR": 0, "K": 25}),
        ((0.0, 0.0, 1.0), ("LR", "K", "RM"), {"LR": 0, "K": 0, "RM": 0}),
    ],
)
def test_stage_schedule(stages, has, wanted):
    begun = first_steps(TrainConfig(steps=100, stages=stages), has)
    assert begun == wanted
    assert stage_at(0, begun) == [s for s, n in begun.items() if n == 0][-1]
    assert stage_at(99, begun) == has[-1]


@pytest.mark.parametrize(
    ("stages", "has"),
    [
        ((0.5, 0.5, 0.0), ("LR", "K", "RM")),
        ((0.25, 0.748, 0.002), ("LR", "K", "RM")),
        ((1.0, 0.0, 0.0), ("LR", "K")),
    ],
)
def test_a_last_stage_without_steps_is_refused(stages, has):
    with pytest.raises(
        InputError, match=f"gives stage {has[-1]} none of the 100 steps"
    ):
        first_steps(TrainConfig(steps=100, stages=stages), has)


def test_parameters_before_the_last_stage_are_not_given_away():
    config, has = TrainConfig(steps=100), ("LR", "K", "RM")
    wanted = {1: "LR", 25: "LR", 26: "K", 50: "K", 51: "RM", 100: "RM", 0: "RM"}
    assert {step: reached(config, step, has) for step in wanted} == wanted
    require_trained(config, 51, has, "run")
    with pytest.raises(InputError, match=r"run: .* step 50 is from training stage K"):
        require_trained(config, 50, has, "run")


def test_late_parameters_start_as_if_new():
    """A stage's first update equals that of a fresh AdamW at the same rate."""
    params = {"encoder": jnp.ones(3), "hr_decoder": jnp.ones(3)}
    stages = (5e-6, 4e-6, 1 - 9e-6)
    config = TrainConfig(steps=10**6, weight_decay=0.1, stages=stages)
    model = KSpaceTransformer(KSTConfig())
    assert first_steps(config, model.stages) == {"LR": 0, "K": 5, "RM": 9}
    optimizer = optimizers.make_optimizer(config, model)
    state = optimizer.init(params)
    for n in range(6):
        grads = {"encoder": jnp.array([1.0, -2.0, 3.0]), "hr_decoder": jnp.zeros(3)}
        if n == 5:
            grads["hr_decoder"] = jnp.array([0.3, -0.1, 5.0])
        updates, state = optimizer.update(grads, state, params)
        if n < 5:
            assert not np.any(updates["hr_decoder"])
    fresh = optax.adamw(5e-4, weight_decay=0.1)
    wanted, _ = fresh.update(
        grads["hr_decoder"], fresh.init(params["hr_decoder"]), params["hr_decoder"]
    )
    np.testing.assert_allclose(updates["hr_decoder"], wanted, rtol=1e-4)


STEPS = np.arange(101)


@pytest.mark.parametrize(
    ("schedule", "warmup", "wanted"),
    [
        (
            "cosine",
            10,
            np.where(
                STEPS < 10, STEPS / 10, (1 + np.cos(np.pi * (STEPS - 10) / 90)) / 2
            ),
        ),
        ("constant", 0, np.ones(101)),
        ("step", 0, np.where(STEPS < 80, 1.0, 0.1)),
        ("halving", 0, 0.5 ** (STEPS // 5)),
    ],
)
def test_rates_of_all_schedules(schedule, warmup, wanted):
    config = TrainConfig(
        steps=100, schedule=schedule, warmup_steps=warmup, learning_rate=1.0
    )
    optimizer = optimizers.make_optimizer(config, KSpaceTransformer(KSTConfig()))
    params = {"encoder": jnp.zeros(1)}
    state, rates = optimizer.init(params), []
    update = jax.jit(optimizer.update)
    for _ in STEPS:
        updates, state = update({"encoder": jnp.ones(1)}, state, params)
        rates.append(-float(updates["encoder"][0]))
    np.testing.assert_allclose(rates, wanted, atol=1e-4)


@pytest.mark.parametrize("clip_norm", [0.0, 1.0])
def test_rmsprop_and_clipping(clip_norm):
    config = TrainConfig(
        optimizer="rmsprop",
        schedule="constant",
        learning_rate=0.1,
        weight_decay=0.0,
        clip_norm=clip_norm,
    )
    model = build(TVConfig())
    optimizer = optimizers.make_optimizer(config, model)
    params = {"a": np.zeros(2, np.float32), "b": np.zeros(1, np.float32)}
    state, squares = optimizer.init(params), np.zeros(3)
    for gradient in ([1e-8, 3.0, -4.0], [0.3, 0.2, 0.1]):  # of norms 5 and 0.37
        gradient = np.float32(gradient)
        updates, state = optimizer.update(
            {"a": gradient[:2], "b": gradient[2:]}, state, params
        )
        if clip_norm:
            gradient = gradient / max(1, np.linalg.norm(gradient))
        squares = 0.99 * squares + 0.01 * gradient**2
        wanted = -0.1 * gradient / (np.sqrt(squares) + 1e-8)
        got = np.concatenate([updates["a"], updates["b"]])
        np.testing.assert_allclose(got, wanted, rtol=1e-5)


def test_the_moving_average_moves_by_its_share():
    config = TrainConfig(ema=0.9, learning_rate=0.1, schedule="constant")
    model = build(TVConfig(iterations=2))
    optimizer = optimizers.make_optimizer(config, model)
    batch = example(dataclasses.replace(TINY, model=TVConfig()), 1)
    before = loop.init_state(model, optimizer, batch, config)
    start = jax.tree.map(np.array, before.params)
    step = loop.make_step(model, optimizer, config, "RM", parallel.make_mesh(1))
    after, *_ = step(before, batch)
    wanted = jax.tree.map(lambda a, b: 0.9 * a + 0.1 * b, start, after.params)
    jax.tree.map(
        lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-5), after.ema, wanted
    )
    assert not np.allclose(jax.tree.leaves(start), jax.tree.leaves(after.params))
