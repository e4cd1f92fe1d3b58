"""Networks, training and evaluation on samples off the grid."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax import tokens
from kst_jax.birdcage import birdcage
from kst_jax.config import Config
from kst_jax.data import opening, pipeline, preparing
from kst_jax.data.preparing import Scan
from kst_jax.data_config import CoilsConfig, DataConfig
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.models import sense
from kst_jax.models.registry import build
from kst_jax.models.sense import SENSEConfig
from kst_jax.models.unet import UNetConfig
from kst_jax.patches import Layout
from kst_jax.training.losses import loss
from kst_jax.trajectories import Trajectory
from tests import programs
from tests.baselines import TINY as BASELINES
from tests.references import make_kst_tiny
from tests.test_training import TINY

SIZE = (16, 16)
RADIAL = dataclasses.replace(TINY, mask=MaskConfig("radial", 4.0))


def changed(**sections):
    return dataclasses.replace(RADIAL, **sections)


def with_patch(patch):
    return dataclasses.replace(TINY.model, patch=patch)


def wave(shape, coils=0):
    """A smooth complex image, or what coils see of it with their maps."""
    rows, columns = np.mgrid[: shape[0], : shape[1]]
    image = np.exp(-((rows - 7) ** 2 + (columns - 9) ** 2) / 20) * np.exp(0.2j * rows)
    image = (100 * image).astype(np.complex64)
    if not coils:
        return Scan(image, None, None, None)
    maps = birdcage(0, shape, coils).astype(np.complex64)
    return Scan(maps * image, maps, None, None)


def batch_of(config, coils=0):
    sampler = opening.open_sampler(config)
    pattern, layout = sampler.fixed("a", 0, 0), sampler.layout(config.model.patch)
    fields, scaling = preparing.tokenise(
        wave(SIZE, coils), pattern, layout, config, "a, slice 0"
    )
    return tokens.batch_of([fields], patch=config.model.patch), scaling


@jax.jit
def samples_of(batch, image):
    return batch.acquisition.forward(image)


@jax.jit
def gridded_image(batch):
    return batch.acquisition.adjoint(batch.kspace)


def complex_of(x):
    return np.asarray(x[..., 0] + 1j * x[..., 1])


@pytest.mark.parametrize("coils", [0, 3])
def test_a_slice_is_scaled_by_its_gridded_image(coils):
    batch, scaling = batch_of(RADIAL, coils)
    gridded = complex_of(gridded_image(batch))
    assert np.mean(np.abs(gridded) ** 2) == pytest.approx(2, rel=1e-3)
    wanted = wave(SIZE).image / scaling.std
    np.testing.assert_allclose(complex_of(batch.image[0]), wanted, atol=1e-4)
    samples = complex_of(samples_of(batch, batch.image))
    np.testing.assert_allclose(samples, complex_of(batch.kspace), atol=1e-3)


def test_points_of_the_grid_make_the_batch_of_cartesian_sampling():
    rng = np.random.default_rng(0)
    mask = rng.random(SIZE) < 0.4
    points = (np.argwhere(mask) - 8).astype(np.float32)[:, None]
    ones = np.ones((len(points), 1), np.float32)
    cartesian, scaling = preparing.tokenise(
        wave(SIZE), mask, Layout.of(mask), TINY, "a"
    )
    found, other = preparing.tokenise(
        wave(SIZE), Trajectory(points, ones), layout_of((1, 1)), RADIAL, "a"
    )
    assert other.std == pytest.approx(scaling.std, rel=1e-4)
    for name in ("value", "position", "image"):
        np.testing.assert_allclose(found[name], cartesian[name], atol=2e-4)


def layout_of(patch):
    return opening.open_sampler(RADIAL).layout(patch)


def initialised(config, batch):
    model = build(config.model, config.data.size)
    return model, make_kst_tiny.weights(model, batch)


@pytest.mark.slow
def test_cg_sense_of_grid_points_is_that_of_cartesian_sampling():
    rng = np.random.default_rng(0)
    mask = rng.random((1, *SIZE)) < 0.5
    points = np.argwhere(mask[0]) - 8
    image = jnp.asarray(rng.normal(size=(1, *SIZE, 2)), jnp.float32)
    maps = birdcage(0, SIZE, 3)[None]
    maps = jnp.asarray(np.stack([maps.real, maps.imag], -1), jnp.float32)
    cartesian = tokens.Batch(*[None] * 4, None, jnp.asarray(mask), maps=maps)
    batch = cartesian.replace(
        mask=jnp.zeros((1, *SIZE), bool),
        trajectory=jnp.asarray(points, jnp.float32)[None],
        density=jnp.full((1, len(points)), 0.3),
    )

    @jax.jit
    def restored(batch):
        samples = batch.acquisition.forward(image)
        return sense.minimise(samples, batch.acquisition, 0.1, 10)

    np.testing.assert_allclose(restored(batch), restored(cartesian), atol=1e-4)


@pytest.mark.slow
def test_a_unet_sees_the_gridded_image():
    config = changed(model=UNetConfig(features=2, poolings=1))
    batch, _ = batch_of(config)
    model, params = initialised(config, batch)
    reconstruct = jax.jit(model.reconstruct)
    first = reconstruct(params, batch).image
    other = batch.replace(density=batch.density**2)  # U-Nets normalise scales away
    assert jnp.abs(reconstruct(params, other).image - first).max() > 1e-3


@pytest.mark.slow
def test_a_run_off_the_grid_as_a_user_types_it(tmp_path):
    options = [*programs.TINY, "--config.mask.kind=golden_radial"]
    programs.run_here("train.py", *options, f"--workdir={tmp_path}/run")
    done = programs.run_here("eval.py", *options, f"--workdir={tmp_path}/run")
    assert done.returncode == 0, done.stderr
    metrics = json.loads((tmp_path / "run" / "eval" / "metrics.json").read_text())
    scores = metrics["slices"]["normalised"]
    assert scores["reconstruction"]["psnr"]["mean"] > 0
    shown = np.load(tmp_path / "run" / "eval" / "figures" / "slices.npz")["trajectory"]
    assert shown.shape[1:] == (3 * 32, 2)
    assert not (tmp_path / "run" / "eval" / "figures" / "attention.png").exists()


@pytest.fixture(scope="module")
def network(full_compilation):
    """A network for radial sampling with tokens of two samples, and a batch."""
    config = changed(model=with_patch((2, 1)))
    batch, _ = batch_of(config)
    model, params = initialised(config, batch)
    return model, params, batch, jax.jit(model.reconstruct)


def misfit(batch, image):
    difference = np.asarray(samples_of(batch, image) - batch.kspace)
    return np.sum(batch.density * np.sum(difference**2, -1))


@pytest.mark.slow
def test_a_small_damping_brings_the_image_to_the_samples(network):
    _, params, batch, reconstruct = network
    found = {}
    for damping in (-6.0, 3.0):
        # A float of Python's would have a program of its own.
        damped = params | {"log_damping": np.float32(damping)}
        image = reconstruct(damped, batch).image
        assert image.shape == (1, *SIZE, 2)
        found[damping] = misfit(batch, image)
    assert found[-6.0] < 0.2 * found[3.0]


@pytest.mark.slow
def test_tokens_have_no_order(network):
    """Readouts in another order give the same image."""
    _, params, batch, reconstruct = network
    order = np.random.default_rng(0).permutation(4)

    def shuffled(x, readouts=4):
        parts = x.reshape(1, readouts, -1, *x.shape[2:])
        return parts[:, order].reshape(x.shape)

    names = ("value", "position", "seen", "kspace", "trajectory", "density")
    other = batch.replace(**{name: shuffled(getattr(batch, name)) for name in names})
    assert np.abs(np.asarray(other.value - batch.value)).max() > 0.1
    np.testing.assert_allclose(
        reconstruct(params, other).image, reconstruct(params, batch).image, atol=2e-3
    )


@pytest.mark.slow
def test_every_parameter_learns_from_samples_off_the_grid(network):
    model, params, batch, _ = network
    gradient = jax.jit(
        jax.grad(lambda p: loss(model.reconstruct(p, batch), batch, RADIAL.train, "RM"))
    )(params)
    for path, leaf in jax.tree_util.tree_leaves_with_path(gradient):
        assert np.abs(leaf).max() > 0, path
        assert np.isfinite(leaf).all(), path
    assert model.introduced_in((jax.tree_util.DictKey("log_damping"),)) == "K"


@pytest.mark.slow
@pytest.mark.usefixtures("full_compilation")
def test_coils_are_combined_off_the_grid():
    data = dataclasses.replace(TINY.data, coils=CoilsConfig(count=3, calibration=12))
    config = changed(data=data)
    batch, _ = batch_of(config, coils=3)
    model, params = initialised(config, batch)
    found = jax.jit(model.reconstruct)(params | {"log_damping": -6.0}, batch).image
    assert found.shape == (1, *SIZE, 2)
    difference = samples_of(batch, found) - batch.kspace
    before = samples_of(batch, gridded_image(batch)) - batch.kspace
    assert np.sum(difference**2) < 0.5 * np.sum(before**2)


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        *(
            ({"model": BASELINES[name]}, rf"mask\.kind='radial'.*{name}")
            for name in ("d5c5", "kunet", "oucr", "admm", "tv", "varnet")
        ),
        (
            {"model": dataclasses.replace(TINY.model, hybrid=True)},
            r"model\.hybrid=True.*False if mask\.kind='radial'",
        ),
        (
            {"data": dataclasses.replace(TINY.data, normalise="target")},
            r"data\.normalise='target'.*'measured' if mask\.kind='radial'",
        ),
        (
            {"train": dataclasses.replace(TINY.train, supervision="self")},
            r"train\.supervision='self'.*only points of the grid are split",
        ),
        (
            {
                "model": UNetConfig(features=2, poolings=1),
                "data": DataConfig(
                    size=SIZE, coils=CoilsConfig(count=3, calibration=12, target="rss")
                ),
                "train": dataclasses.replace(TINY.train, error="ssim", domain="image"),
            },
            r"data\.coils\.count=3.*if mask\.kind='radial'",
        ),
    ],
    ids=str,
)
def test_what_needs_the_grid_is_refused(sections, message):
    with pytest.raises(InputError, match=message):
        changed(**sections)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"acceleration": (4.0, 8.0)}, r"mask\.acceleration.*one number"),
        ({"calibration": 2}, r"mask\.calibration=2.*0 if mask\.kind='spiral'"),
        ({"center_fraction": 0.1}, r"mask\.center_fraction=0\.1"),
    ],
    ids=str,
)
def test_settings_of_masks_are_not_those_of_trajectories(options, message):
    with pytest.raises(InputError, match=message):
        MaskConfig(**{"kind": "spiral", **options})


@pytest.mark.parametrize("model", [SENSEConfig(), UNetConfig(poolings=1)])
def test_what_does_not_need_the_grid_is_not_refused(model):
    assert isinstance(changed(model=model), Config)


def test_processes_share_what_one_would_train_on():
    source, _ = opening.open_sources(RADIAL)
    sampler = opening.open_sampler(RADIAL)

    def first(**share):
        stream = pipeline.training_batches(source, RADIAL, sampler, **share)
        with contextlib.closing(stream):
            return next(stream)

    whole = first()
    assert len({x.tobytes() for x in np.asarray(whole.trajectory)}) == 8
    parts = [first(process=n, processes=2) for n in (0, 1)]
    for name in ("value", "trajectory", "kspace"):
        wanted = np.asarray(getattr(whole, name))
        for n, part in enumerate(parts):
            np.testing.assert_array_equal(getattr(part, name), wanted[n::2])
