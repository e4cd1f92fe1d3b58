"""Attention along the columns, in hybrid space."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax import tokens
from kst_jax.birdcage import birdcage
from kst_jax.fourier import fft_readout, ifft_readout
from kst_jax.models.hybrid import HybridAttention, expected_magnitude
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.patches import Layout
from tests.references import make_kst_tiny
from tests.test_kst import apply

SIZE = (12, 10)
MASK = np.broadcast_to(np.arange(10) % 3 == 1, SIZE)


def channels(x):
    return np.stack([x.real, x.imag], -1).astype(np.float32)


def noise(*shape, seed=0):
    return np.random.default_rng(seed).normal(size=(*shape, 2)).astype(np.float32)


@pytest.fixture(scope="module")
def block():
    """A block of random weights, as a function of a spectrum and k-space.

    Its patches are bands of 5 rows; the last band reaches beyond the 12 rows.
    """
    module = HybridAttention((5, 1), 16, 2, 16, jnp.float32, "plain")
    mask, x = jnp.asarray(MASK)[None], noise(1, *SIZE)
    variables = {"params": make_kst_tiny.weights(module, x, x, mask)}
    return jax.jit(
        lambda spectrum, kspace: module.apply(variables, spectrum, kspace, mask)
    )


def test_hybrid_space_is_an_image_along_the_readout_only():
    x = noise(*SIZE)
    z = np.fft.ifftshift(x[..., 0] + 1j * x[..., 1], axes=0)
    wanted = np.fft.fftshift(np.fft.ifft(z, axis=0, norm="ortho"), axes=0)
    np.testing.assert_allclose(ifft_readout(x), channels(wanted), atol=1e-6)
    np.testing.assert_allclose(fft_readout(ifft_readout(x)), x, atol=1e-6)


def test_a_band_of_rows_is_told_by_itself(block):
    hybrid = np.asarray(ifft_readout(noise(1, *SIZE)))
    other = hybrid.copy()
    other[:, 8] += 1
    kspace = noise(1, *SIZE, seed=1)
    before, after = (
        np.asarray(ifft_readout(block(fft_readout(h), kspace))) for h in (hybrid, other)
    )
    changed = np.abs(after - before).max(axis=(0, 2, 3)) > 1e-5
    np.testing.assert_array_equal(changed, np.arange(12) // 5 == 1)
    # attention reaches every column of the band
    one = hybrid.copy()
    one[:, 8, 0] += 1
    after = np.asarray(ifft_readout(block(fft_readout(one), kspace)))
    assert (np.abs(after - before)[0, 5].max(axis=-1) > 1e-6).all()


def test_the_change_has_the_units_of_the_spectrum(block):
    spectrum, kspace = noise(1, *SIZE), noise(1, *SIZE, seed=1)
    np.testing.assert_allclose(
        block(1000 * spectrum, 1000 * kspace),
        1000 * block(spectrum, kspace),
        rtol=1e-3,
        atol=1e-3,
    )


def test_the_expected_magnitude_falls_from_the_centre_and_fits_what_was_measured():
    kspace = noise(3, *SIZE)  # three coils
    got = expected_magnitude(kspace[None], jnp.asarray(MASK)[None])
    energy = [
        (kspace[:, row, column] ** 2).sum() * (abs(column - 5) + 1) ** 2
        for row, column in np.argwhere(MASK)
    ]
    wanted = np.sqrt(np.mean(energy)) / (np.abs(np.arange(10) - 5) + 1)
    np.testing.assert_allclose(got[0, 0], wanted, rtol=1e-5)


def test_an_empty_slice_stays_finite(block):
    assert np.isfinite(block(np.zeros((1, *SIZE, 2)), np.zeros((1, *SIZE, 2)))).all()


@pytest.mark.parametrize("transformer", [True, False])
@pytest.mark.parametrize("patch", [(1, 1), (4, 1)])
@pytest.mark.slow
def test_a_network_with_it_keeps_what_was_measured(transformer, patch):
    kspace = noise(*SIZE)
    fields = tokens.tokenise(kspace, MASK, Layout.of(MASK, patch=patch))
    batch = tokens.batch_of([fields], patch=patch)
    config = dataclasses.replace(
        make_kst_tiny.CONFIG,
        patch=patch,
        transformer=transformer,
        hybrid=True,
        residual_spectrum=0.1,
        lr_size=(4, 4),
    )
    model = KSpaceTransformer(config)
    params = make_kst_tiny.weights(model, batch)
    assert "hybrid" in params["hr_decoder"]
    found = np.asarray(apply(model, params, batch).image)[0]
    image = found[..., 0] + 1j * found[..., 1]
    spectrum = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho"))
    np.testing.assert_allclose(channels(spectrum)[MASK], kspace[MASK], atol=1e-5)
    # the block takes part: without its answer the image is another
    head = params["hr_decoder"]["hybrid"]["head"]["mlp"]["output"]
    head["kernel"], head["bias"] = 0 * head["kernel"], 0 * head["bias"]
    other = np.asarray(apply(model, params, batch).image)[0]
    assert np.abs(other - found).max() > 1e-3


@pytest.mark.slow
def test_a_network_with_it_takes_several_coils():
    maps = birdcage(0, SIZE, 3)
    fields = tokens.tokenise(noise(3, *SIZE), MASK) | {"maps": channels(maps)}
    batch = tokens.batch_of([fields])
    config = dataclasses.replace(
        make_kst_tiny.CONFIG, transformer=False, hybrid=True, residual_spectrum=0.1
    )
    model = KSpaceTransformer(config)
    params = make_kst_tiny.weights(model, batch)
    image = apply(model, params, batch).image
    assert image.shape == (1, *SIZE, 2)
    assert np.isfinite(image).all()
