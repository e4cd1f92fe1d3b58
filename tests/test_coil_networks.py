"""The methods that the K-Space Transformer is compared with, on several coils."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax import tokens
from kst_jax.acquisition import Acquisition
from kst_jax.config import Config, TrainConfig
from kst_jax.data_config import CoilsConfig, DataConfig
from kst_jax.errors import InputError
from kst_jax.models import tv
from kst_jax.models.registry import MODELS, build
from tests.baselines import TINY
from tests.references import make_kst_tiny
from tests.test_kst_coils import SIZE, channels, scan, transform


def maps_of_two():
    rng = np.random.default_rng(3)
    maps = rng.normal(size=(2, *SIZE)) + 1j * rng.normal(size=(2, *SIZE))
    return maps / np.linalg.norm(maps, axis=0)


def run(config, batch):
    model = build(config)
    params = make_kst_tiny.weights(model, batch)
    return jax.jit(model.apply)({"params": params}, batch).image


@pytest.mark.parametrize("name", ["d5c5", "oucr"])
def test_networks_with_data_consistency_keep_a_fully_sampled_image(name):
    maps, config = maps_of_two(), TINY[name]
    batch, image = scan(maps)
    kspace = channels(transform(np.fft.fft2, maps * image))
    whole = tokens.tokenise(kspace, np.ones(SIZE, bool)) | {"maps": channels(maps)}
    found = run(config, tokens.batch_of([whole]))
    np.testing.assert_allclose(found[0], channels(image), atol=1e-4)
    assert np.abs(run(config, batch)[0] - channels(image)).max() > 0.1


def test_the_unet_sees_the_root_sum_of_squares():
    batch, _ = scan(maps_of_two())
    y = np.asarray(batch.kspace)[0, ..., 0] + 1j * np.asarray(batch.kspace)[0, ..., 1]
    rss = np.linalg.norm(transform(np.fft.ifft2, y), axis=0)
    one = channels(transform(np.fft.fft2, rss))
    wanted = run(
        TINY["unet"], tokens.batch_of([tokens.tokenise(one, np.ones(SIZE, bool))])
    )
    found = run(TINY["unet"], batch)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


UNET = {"model": TINY["unet"], "train": TrainConfig(error="ssim", domain="image")}


@pytest.mark.parametrize(
    ("coils", "model", "cause"),
    [
        ({}, {}, r"data\.coils\.target='combined'.*'rss' .*data\.coils\.combine=True"),
        ({"target": "rss"}, {"consistent": True}, "model.consistent=True .*False"),
    ],
)
def test_a_unet_of_several_coils_is_refused_what_needs_a_phase(coils, model, cause):
    data = DataConfig(coils=CoilsConfig(count=2, **coils))
    network = dataclasses.replace(TINY["unet"], **model)
    with pytest.raises(InputError, match=cause):
        Config(**UNET | {"data": data, "model": network})


@pytest.mark.parametrize("coils", [{"target": "rss"}, {"combine": True}])
def test_a_unet_of_several_coils_learns_their_root_sum_of_squares_or_one_coil(coils):
    Config(data=DataConfig(coils=CoilsConfig(count=2, **coils)), **UNET)


def test_total_variation_of_one_coil_is_the_same_by_both_iterations():
    """With unit maps the problem is that of one coil, solved in another way."""
    batch, _ = scan(np.ones((1, *SIZE)))
    kspace, mask = batch.kspace, batch.mask
    several = Acquisition(mask, batch.maps)
    weight = jnp.float32(0.05)
    minimise = jax.jit(tv.minimise, static_argnums=3)
    wanted = minimise(kspace[:, 0], Acquisition(mask), weight, 3000)
    found = minimise(kspace, several, weight, 3000)
    np.testing.assert_allclose(found, wanted, atol=2e-3)


def test_total_variation_of_several_coils_is_a_minimum():
    batch, _ = scan(maps_of_two())
    weight = 0.05
    found = jax.jit(tv.minimise, static_argnums=3)(
        batch.kspace, batch.acquisition, jnp.float32(weight), 3000
    )

    @jax.jit
    def objective(image):
        misfit = batch.acquisition.forward(image) - batch.kspace
        size = jnp.sqrt((tv.differences(image) ** 2).sum((-2, -1)))
        return (misfit**2).sum() / 2 + weight * size.sum()

    least, rng = objective(found), np.random.default_rng(0)
    for scale in (1e-1, 1e-2):
        change = scale * rng.normal(size=found.shape)
        assert objective(found + change) > least
    assert objective(0.99 * found) > least
    assert objective(1.01 * found) > least


def test_which_networks_take_coils():
    takes = {name for name, entry in MODELS.items() if entry.config.takes_coils}
    assert set(MODELS) - takes == {"kunet", "admm"}
