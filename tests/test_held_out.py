"""The loss at held-out points, against NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax.config import TrainConfig
from kst_jax.fourier import fft2c
from kst_jax.models.contract import Reconstruction
from kst_jax.tokens import Batch
from kst_jax.training import held_out
from kst_jax.training.averages import average_pool, transfer
from kst_jax.training.losses import loss

SELF = TrainConfig(supervision="self", layer_weight=0.2, last_weight=0.9)


def complex_of(x):
    return x[..., 0] + 1j * x[..., 1]


def spectrum(image):
    axes = (-2, -1)
    return np.fft.fftshift(
        np.fft.fft2(np.fft.ifftshift(image, axes=axes), norm="ortho"), axes=axes
    )


def batch_of(weights, kspace, maps=None):
    """A batch of which only the held-out points matter."""
    nothing = np.zeros((len(weights), 0, 2), np.float32)
    points = (weights > 0)[..., None]
    if maps is not None:
        points = points[:, None]
    return Batch(
        *(nothing, nothing, None, nothing[..., 0]),
        kspace=kspace * 0,
        mask=weights < 0,
        held_out=jnp.asarray(weights),
        held_kspace=jnp.asarray(kspace * points),
        maps=maps,
    )


def normalised(error, measured, weights):
    """The sum of both normalised errors of one slice."""
    found = 0.0
    for power in (2, 1):
        sums = [(weights * abs(x) ** power).sum() for x in (error, measured)]
        found += (sums[0] / sums[1]) ** (1 / power)
    return found


@pytest.mark.parametrize("coils", [0, 3])
def test_layers_are_compared_at_held_out_points(coils):
    rng = np.random.default_rng(0)
    B, H, W = 2, 8, 6
    images = rng.normal(size=(2, B, H, W, 2)).astype(np.float32)
    weights = (rng.random((B, H, W)) * (rng.random((B, H, W)) < 0.4)).astype("f4")
    maps, shape = None, (B, H, W, 2)
    seen = complex_of(images)
    if coils:
        shape = (B, coils, H, W, 2)
        maps = rng.normal(size=shape).astype(np.float32)
        seen = complex_of(maps) * seen[:, :, None]
    kspace = rng.normal(size=shape).astype(np.float32)
    expected = 0.0
    for layer, weight in zip(spectrum(seen), (0.2, 0.9), strict=True):
        errors = [
            normalised(x - y, y, w)
            for x, y, w in zip(layer, complex_of(kspace), weights, strict=True)
        ]
        expected += weight * np.mean(errors)
    output = Reconstruction(jnp.asarray(images[1]), {"image": jnp.asarray(images)})
    got = loss(output, batch_of(weights, kspace, maps), SELF, "RM")
    np.testing.assert_allclose(got, expected, rtol=1e-4)


@pytest.mark.parametrize("shape", [(8, 6), (7, 9), (16, 5)])
def test_averages_of_a_band_limited_image_have_the_transferred_spectrum(shape):
    """Low frequencies alone do not alias: the low grid has them, without its edge."""
    rng = np.random.default_rng(0)
    H, W = 16, 18
    whole = np.zeros((H, W), complex)
    middle = tuple(
        slice(N // 2 - (n - 1) // 2, N // 2 + (n - 1) // 2 + 1)
        for N, n in zip((H, W), shape, strict=True)
    )
    whole[middle] = rng.normal(size=whole[middle].shape) + 1j
    axes = (0, 1)
    image = np.fft.fftshift(
        np.fft.ifft2(np.fft.ifftshift(whole, axes=axes), norm="ortho"), axes=axes
    )
    image = np.stack([image.real, image.imag], -1)[None].astype(np.float32)
    low = complex_of(np.asarray(average_pool(jnp.asarray(image), shape)))[0]
    found = spectrum(low)
    first = [N // 2 - n // 2 for N, n in zip((H, W), shape, strict=True)]
    crop = whole[first[0] : first[0] + shape[0], first[1] : first[1] + shape[1]]
    wanted = np.outer(transfer(H, shape[0]), transfer(W, shape[1])) * crop
    exact = all(N % n == 0 for N, n in zip((H, W), shape, strict=True))
    # Where patches end within pixels, the averaging itself depends on the place.
    error = np.linalg.norm(found - wanted) / np.linalg.norm(wanted)
    assert error < (1e-5 if exact else 0.12)


def test_low_resolution_images_meet_the_transferred_measurement():
    """An averaged image has no error where it does not alias, as it may at the edge."""
    rng = np.random.default_rng(0)
    whole = np.zeros((1, 16, 16, 2), np.float32)
    whole[:, 5:12, 5:12] = rng.normal(size=(1, 7, 7, 2))
    image = np.fft.fftshift(
        np.fft.ifft2(np.fft.ifftshift(complex_of(whole), axes=(1, 2)), norm="ortho"),
        axes=(1, 2),
    )
    image = np.stack([image.real, image.imag], -1).astype(np.float32)
    low = average_pool(jnp.asarray(image), (8, 8))[None]
    weights = np.ones((1, 16, 16), np.float32)
    assert held_out.error(low, batch_of(weights, whole))[0, 0] < 1e-4
    whole[:, 4] = whole[:, :, 4] = 9.0  # the low grid's highest frequency
    assert held_out.error(low, batch_of(weights, whole))[0, 0] < 1e-4
    whole[:, 6, 6] += 1.0
    assert held_out.error(low, batch_of(weights, whole))[0, 0] > 0.05


@pytest.mark.parametrize("why", ["outside", "zero", "coils"])
def test_low_resolution_images_that_nothing_compares_have_no_loss(why):
    rng = np.random.default_rng(0)
    weights = np.zeros((2, 16, 16), np.float32)
    weights[:, 0 if why == "outside" else 8] = 1
    kspace = rng.normal(size=(2, 16, 16, 2)).astype(np.float32) * (why != "zero")
    maps = None
    if why == "coils":
        kspace, maps = (np.stack([kspace] * 2, 1) for _ in range(2))
    batch = batch_of(weights, kspace, maps)

    @jax.value_and_grad
    def total(images):
        return held_out.error(images, batch).sum()

    value, gradient = total(jnp.asarray(rng.normal(size=(1, 2, 8, 8, 2)), jnp.float32))
    assert value == 0
    assert not gradient.any()


def test_gradients_are_finite_where_the_spectrum_is_right():
    rng = np.random.default_rng(0)
    image = jnp.asarray(rng.normal(size=(1, 8, 8, 2)), jnp.float32)
    weights = np.ones((1, 8, 8), np.float32)
    batch = batch_of(weights, np.asarray(fft2c(image)))
    gradient = jax.grad(lambda x: held_out.error(x, batch).sum())(image[None])
    assert np.isfinite(gradient).all()
