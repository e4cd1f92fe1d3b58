"""Training without targets: one scan of each slice, split anew at each visit."""

import contextlib
import dataclasses

import jax
import numpy as np
import pytest

from kst_jax import fourier, parallel
from kst_jax.benchmark import measuring
from kst_jax.config import Config
from kst_jax.config_dict import from_dict
from kst_jax.data import opening, pipeline, sensitivities, sources
from kst_jax.data_config import AugmentConfig, CoilsConfig, DataConfig
from kst_jax.errors import InputError
from kst_jax.evaluation.evaluate import evaluate
from kst_jax.mask_config import MaskConfig
from kst_jax.models.d5c5 import D5C5Config
from kst_jax.models.registry import build
from kst_jax.runs.checkpoints import read_parameters
from kst_jax.training import loop, losses, optimizers
from kst_jax.training.validation import Validator
from tests import baselines
from tests.references import make_kst_tiny
from tests.scans import write_nifti
from tests.test_training import TINY, rows

FLIPS = AugmentConfig(flip_rows=True, flip_columns=True, phase=1.0, noise=0.05)
CONFIG = Config(
    data=DataConfig(
        train="demo:train,demo:test",
        size=(16, 16),
        crop=(208, 208),
        pad=True,
        slices=(0.4, 0.6),
        augment=FLIPS,
    ),
    mask=MaskConfig("uniform_1d", 2.0, calibration=2),
    model=TINY.model,
    train=dataclasses.replace(TINY.train, supervision="self", batch_size=2),
)


def changed(config=CONFIG, **sections):
    """The config with other values in its sections."""
    return dataclasses.replace(
        config,
        **{
            name: dataclasses.replace(getattr(config, name), **values)
            if isinstance(values, dict)
            else values
            for name, values in sections.items()
        },
    )


def one_slice(config, folder):
    """The training scans, with the first slice alone."""
    source, _ = opening.open_sources(config)
    source = dataclasses.replace(source, entries=source.entries[:1])
    return sensitivities.estimate(source, config, folder, config.data.coils.sets)


def stream_of(source, config, **share):
    sampler = opening.open_sampler(config)
    return pipeline.training_batches(source, config, sampler, **share)


def visits(source, config, count):
    with contextlib.closing(stream_of(source, config)) as stream:
        for _ in range(count):
            yield jax.tree.map(lambda x: np.asarray(x[0]), next(stream))


def image_of(kspace):
    found = np.asarray(fourier.ifft2c(kspace))
    found = found[..., 0] + 1j * found[..., 1]
    return found / np.linalg.norm(found)


@pytest.mark.parametrize("coils", [1, 2])
@pytest.mark.parametrize(
    "mask",
    [
        CONFIG.mask,
        MaskConfig("gaussian_2d", 3.0),
        MaskConfig("fastmri_random", 2.0, center_fraction=0.25),
    ],
    ids=lambda mask: mask.kind,
)
def test_a_slice_has_one_scan_for_life(mask, coils, tmp_path):
    """All that is ever measured of it is one of its four flips, to a scale."""
    config = changed(
        mask=mask,
        data={"coils": CoilsConfig(coils, sets=3, calibration=12)},
        train={"batch_size": 1, "stages": (0.0, 0.0, 1.0)},
    )
    source, wanted, splits, flips = one_slice(config, tmp_path), None, set(), set()
    for batch in visits(source, config, 24):
        assert not (batch.mask & (batch.held_out > 0)).any()
        found = image_of(batch.kspace + batch.held_kspace)
        if wanted is None:
            wanted = [found[..., ::r, ::c] for r in (1, -1) for c in (1, -1)]
        errors = [np.linalg.norm(found - flip) for flip in wanted]
        assert min(errors) < 1e-5
        flips.add(int(np.argmin(errors)))
        splits.add(batch.mask.tobytes())
    assert flips == {0, 1, 2, 3}
    assert len(splits) > 8


def test_the_network_sees_nothing_of_what_is_held_out(tmp_path):
    source = one_slice(CONFIG, tmp_path)
    config = changed(train={"batch_size": 1})
    for batch in visits(source, config, 6):
        assert not batch.kspace[batch.held_out > 0].any()
        held_columns = np.flatnonzero(batch.held_out[0])
        assert set(held_columns) <= set(np.asarray(batch.query) % 16)
        assert batch.value.shape[0] == batch.mask.sum()
        # The scale is that of the zero-filled image of what is seen.
        seen = np.asarray(fourier.ifft2c(batch.kspace))
        np.testing.assert_allclose((seen**2).mean(), 1, rtol=1e-4)
        spectrum = np.asarray(fourier.fft2c(batch.image))
        points = batch.held_out > 0
        np.testing.assert_allclose(
            batch.held_kspace, np.where(points[..., None], spectrum, 0), atol=1e-4
        )


def test_weights_follow_the_flips(tmp_path):
    """A column has one weight wherever a flip puts it."""
    config = changed(train={"batch_size": 1, "weighted": True})
    source, sums = one_slice(config, tmp_path), {}
    for batch in visits(source, config, 24):
        for column in np.flatnonzero(batch.held_out[0]):
            weight = batch.held_out[0, column]
            assert (batch.held_out[:, column] == weight).all()
            energy = np.sum(batch.held_kspace[:, column] ** 2)
            energy /= np.sum((batch.kspace + batch.held_kspace) ** 2)
            sums.setdefault(round(float(weight), 4), []).append(energy)
    assert len(sums) > 3
    assert all(np.ptp(found) < 1e-4 for found in sums.values())


@pytest.mark.parametrize(
    "mask",
    [CONFIG.mask, MaskConfig("fastmri_random", 2.0, center_fraction=0.25)],
    ids=lambda mask: mask.kind,
)
def test_the_stream_does_not_depend_on_the_number_of_processes(mask):
    config = changed(mask=mask, train={"batch_size": 8})
    # Of two files, since fastMRI's masks go by the file.
    source = sources.open_source("demo:train,demo:test", config.data.selection(0))
    whole = next(stream_of(source, config))
    assert len({one.tobytes() for one in whole.mask}) > 1
    for process in range(2):
        share = next(stream_of(source, config, process=process, processes=2))
        wanted = jax.tree.map(lambda x, p=process: x[p::2], whole)
        jax.tree.map(np.testing.assert_array_equal, share, wanted)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"data": {"normalise": "target"}}, r"data\.normalise.*'measured'.*no target"),
        ({"data": {"augment": {"rotation": 5.0}}}, r"data\.augment\.rotation.*flips"),
        ({"data": {"augment": {"intensity": 0.1}}}, r"data\.augment\.intensity"),
        (
            {"mask": {"kind": "bank"}, "train": {"weighted": True}},
            r"train\.weighted=True.*False if mask\.kind='bank'",
        ),
        ({"train": {"held_out": 1.0}}, r"train\.held_out=1\.0.*between 0 and 1"),
        (
            {"train": {"supervision": "target", "held_out": 0.3}},
            r"train\.held_out=0\.3.*unless train\.supervision='self'",
        ),
        ({"train": {"supervision": "none"}}, r"one of target, self"),
        (
            {
                "data": {"coils": {"count": 2, "target": "rss"}},
                "train": {"error": "ssim", "domain": "image"},
            },
            r"data\.coils\.target='rss'.*'combined'.*magnitudes",
        ),
        (
            {"data": {"coils": {"count": 2}}, "model": {"name": "varnet"}},
            r"model\.maps='learned'.*'given'.*phase",
        ),
        (
            {"data": {"coils": {"count": 2}}},
            r"train\.stages.*several coils.*low-resolution",
        ),
    ],
)
def test_what_needs_more_than_a_scan_is_refused(sections, message):
    values = {name: dict(section) for name, section in sections.items()}
    values["train"] = {"supervision": "self"} | values.get("train", {})
    with pytest.raises(InputError, match=message):
        from_dict(values)


def test_a_split_without_anything_to_compare_is_refused_at_once(tmp_path):
    config = changed(
        data={"train": "/nowhere"}, mask=MaskConfig("uniform_1d", 8.0, calibration=2)
    )
    with pytest.raises(InputError, match="holds out none of the 2 columns"):
        loop.train(config, tmp_path)


def test_validation_is_by_what_is_held_out(tmp_path):
    """Always the same points, split by the slice's own generator, not by its visit."""
    config = changed(
        train={"validate_every": 1},
        eval={"batch_size": 2},
        model=D5C5Config(cascades=1, features=4),
    )
    source = one_slice(config, tmp_path)
    sampler, model = opening.open_sampler(config), build(config.model)
    batch = pipeline.example_batch(config, sampler)
    params = make_kst_tiny.weights(model, batch)
    validator = Validator(config, source, sampler, model)
    found = [validator(params, "RM") for _ in range(2)]
    assert found[0] == found[1]
    test = dataclasses.replace(
        config, eval=dataclasses.replace(config.eval, seed=config.data.split_seed)
    )
    stream = pipeline.evaluation_batches(source, test, sampler, holds_out=True)
    batch = jax.tree.map(lambda x: x[:1], next(iter(stream)).batch)
    image = jax.jit(model.reconstruct)(params, batch).image
    spectrum = np.asarray(fourier.fft2c(image))
    weights = batch.held_out[0] > 0
    assert weights.any()
    errors, sizes = (
        np.hypot(*np.moveaxis(x, -1, 0))[0][weights]
        for x in (spectrum - batch.held_kspace, batch.held_kspace)
    )
    wanted = np.linalg.norm(errors) / np.linalg.norm(sizes) + errors.sum() / sizes.sum()
    assert found[0] == pytest.approx({"validation_loss": wanted}, rel=1e-4)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A short training on one person, validated on another, tested on a third."""
    folder = tmp_path_factory.mktemp("self")
    rng = np.random.default_rng(0)
    volume = np.add.outer(np.hanning(208), np.hanning(208))[..., None]
    volume = 50 * volume + rng.uniform(0, 10, (208, 208, 3))
    write_nifti(folder / "sub-1.nii", volume.astype("f4"))
    config = changed(
        data={
            "train": "demo:train",
            "test": "demo:test",
            "validation": str(folder / "sub-1.nii"),
        },
        train={
            "steps": 40,
            "batch_size": 4,
            "log_every": 1,
            "image_every": 20,
            "stages": (0.0, 0.0, 1.0),
            "learning_rate": 5e-3,
            "schedule": "constant",
            "ema": 0.0,
            "validate_every": 10,
            "keep_best": 1,
            "keep": 1,
        },
        eval={"checkpoint": "best", "figures": 0},
    )
    return config, folder / "run", loop.train(config, folder / "run")


@pytest.mark.slow
def test_the_loss_falls(trained):
    _, workdir, _ = trained
    losses = [row["loss"] for row in rows(workdir)]
    assert np.mean(losses[-5:]) < 0.9 * np.mean(losses[:5])


@pytest.mark.slow
def test_the_best_checkpoint_has_the_lowest_validation_loss(trained):
    config, workdir, _ = trained
    scores = {
        row["step"]: row["validation_loss"]
        for row in rows(workdir)
        if "validation_loss" in row
    }
    assert list(scores) == [10, 20, 30, 40]
    assert not any("validation_psnr" in row for row in rows(workdir))
    best = min(scores, key=scores.get)
    assert read_parameters(workdir, "best")[2] == best
    kept = {path.name for path in (workdir / "checkpoints").iterdir()}
    assert {name for name in kept if name.isdigit()} == {str(best), "40"}
    assert evaluate(config, workdir)["step"] == best


@pytest.mark.parametrize(
    ("name", "coils"),
    [
        ("d5c5", 1),
        pytest.param("oucr", 1, marks=pytest.mark.slow),
        pytest.param("varnet", 2, marks=pytest.mark.slow),
    ],
)
def test_other_networks_learn_from_what_is_held_out(name, coils, tmp_path):
    model = baselines.TINY[name]
    if coils > 1:
        model = dataclasses.replace(model, maps="given")
    config = changed(
        data={"coils": CoilsConfig(coils, sets=2, calibration=12)}, model=model
    )
    source = one_slice(config, tmp_path)
    batch = next(stream_of(source, config))
    network = build(model)
    params = make_kst_tiny.weights(network, batch)

    @jax.jit
    @jax.value_and_grad
    def loss_of(params):
        output = network.apply({"params": params}, batch)
        return losses.loss(output, batch, config.train, "RM")

    loss, gradient = loss_of(params)
    assert 0 < loss < 10
    for path, leaf in jax.tree.leaves_with_path(gradient):
        assert np.isfinite(leaf).all()
        assert np.any(leaf), jax.tree_util.keystr(path)


def test_without_a_target_steps_have_no_psnr_and_panels_two_images(tmp_path):
    config = changed(model=D5C5Config(cascades=1, features=4))
    batch = next(stream_of(one_slice(config, tmp_path), config))
    batch = batch.replace(image=None)
    model, mesh = build(config.model), parallel.make_mesh(1)
    optimizer = optimizers.make_optimizer(config.train, model)
    step = loop.make_step(model, optimizer, config.train, "RM", mesh)
    state = loop.init_state(model, optimizer, batch, config.train)
    _, scalars, images = step(state, parallel.shard(batch, mesh))
    assert set(scalars) == {"loss", "gradient_norm", "parameter_norm"}
    assert np.isfinite(float(scalars["loss"]))
    assert loop._panel(batch, images).shape == (16, 2 * 16)


def test_benchmarks_hold_points_out_too():
    batch = measuring.example(CONFIG, 2)
    assert batch.held_out.any(axis=(1, 2)).all()
    assert not (batch.mask & (batch.held_out > 0)).any()
