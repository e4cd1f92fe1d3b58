"""The acquisition as an operator, against numpy's Fourier transform."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax.acquisition import Acquisition
from kst_jax.birdcage import birdcage

SHAPES = [(8, 6), (7, 9), (16, 5)]


def complex_of(x):
    x = np.asarray(x, np.float64)
    return x[..., 0] + 1j * x[..., 1]


def inner(x, y):
    return np.vdot(complex_of(x), complex_of(y))


def centred(transform, x):
    x = np.fft.ifftshift(complex_of(x), axes=(-2, -1))
    x = transform(x, axes=(-2, -1), norm="ortho")
    return np.fft.fftshift(x, axes=(-2, -1))


@pytest.fixture(params=SHAPES, ids=str)
def case(request):
    """An acquisition of two slices, an image and k-space of them."""
    rng = np.random.default_rng(0)
    shape = (2, *request.param)
    acquisition = Acquisition(jnp.asarray(rng.random(shape) < 0.4))
    image, kspace = (
        jnp.asarray(rng.normal(size=(*shape, 2)), jnp.float32) for _ in range(2)
    )
    return acquisition, image, kspace


def test_forward_is_the_masked_fourier_transform(case):
    acquisition, image, _ = case
    wanted = np.where(acquisition.mask, centred(np.fft.fft2, image), 0)
    found = complex_of(acquisition.forward(image))
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_adjoint_is_that_of_forward(case):
    acquisition, image, kspace = case
    one = inner(acquisition.forward(image), kspace)
    other = inner(image, acquisition.adjoint(kspace))
    assert one == pytest.approx(other, rel=1e-5)


def test_the_rows_are_orthonormal(case):
    """A A^H is the identity where sampled, and zero elsewhere."""
    acquisition, _, kspace = case
    found = acquisition.forward(acquisition.adjoint(kspace))
    wanted = np.where(np.asarray(acquisition.mask)[..., None], kspace, 0)
    np.testing.assert_allclose(found, wanted, atol=1e-5)


def test_a_consistent_image_has_the_measured_samples_and_keeps_the_others(case):
    acquisition, image, kspace = case
    found = centred(np.fft.fft2, acquisition.consistent(image, kspace))
    mask = np.asarray(acquisition.mask)
    np.testing.assert_allclose(found[mask], complex_of(kspace)[mask], atol=1e-5)
    before = centred(np.fft.fft2, image)
    np.testing.assert_allclose(found[~mask], before[~mask], atol=1e-5)


def test_data_consistency_twice_is_once(case):
    acquisition, image, kspace = case
    once = acquisition.consistent(image, kspace)
    twice = acquisition.consistent(once, kspace)
    np.testing.assert_allclose(twice, once, atol=1e-5)


def test_filling_keeps_measured_values_bit_for_bit(case):
    acquisition, spectrum, kspace = case
    mixed, mask = np.asarray(acquisition.fill(spectrum, kspace)), acquisition.mask
    assert (mixed[mask] == np.asarray(kspace)[mask]).all()
    assert (mixed[~mask] == np.asarray(spectrum)[~mask]).all()


@pytest.fixture
def coils():
    """An acquisition of two slices by three coils, an image and k-space of them."""
    rng = np.random.default_rng(1)
    rows, columns = 8, 7
    maps = np.stack([birdcage(seed, (rows, columns), 3) for seed in (1, 2)])
    maps[:, :, :2, :2] = 0  # outside the object
    image, kspace = (
        jnp.asarray(rng.normal(size=size), jnp.float32)
        for size in ((2, rows, columns, 2), (2, 3, rows, columns, 2))
    )
    mask = jnp.asarray(rng.random((2, rows, columns)) < 0.4)
    maps = jnp.stack([maps.real, maps.imag], -1)
    return Acquisition(mask, maps), image, kspace


def test_each_coil_samples_the_image_times_its_map(coils):
    acquisition, image, _ = coils
    found = complex_of(acquisition.forward(image))
    assert found.shape == acquisition.maps.shape[:-1]
    for coil in range(3):
        seen = complex_of(acquisition.maps)[:, coil] * complex_of(image)
        seen = np.stack([seen.real, seen.imag], -1)
        wanted = np.where(acquisition.mask, centred(np.fft.fft2, seen), 0)
        np.testing.assert_allclose(found[:, coil], wanted, atol=1e-5)


def test_adjoint_of_several_coils_is_that_of_forward(coils):
    acquisition, image, kspace = coils
    one = inner(acquisition.forward(image), kspace)
    other = inner(image, acquisition.adjoint(kspace))
    assert one == pytest.approx(other, rel=1e-4)


def test_normal_operator_is_adjoint_after_forward(coils):
    several, image, _ = coils
    for acquisition in (several, Acquisition(several.mask)):
        found = acquisition.normal(image)
        wanted = acquisition.adjoint(acquisition.forward(image))
        np.testing.assert_allclose(found, wanted, atol=1e-5)
        assert inner(found, image).real == pytest.approx(
            np.linalg.norm(acquisition.forward(image)) ** 2, rel=1e-4
        )


def test_the_spectrum_of_several_coils_gives_the_image_back_inside_the_object(coils):
    acquisition, image, _ = coils
    found = acquisition.image(acquisition.spectrum(image))
    seen = np.asarray(acquisition.maps).any((1, 4))[..., None]
    np.testing.assert_allclose(found, np.where(seen, image, 0), atol=1e-5)


def test_samples_of_an_image_are_consistent_with_it(coils):
    acquisition, image, _ = coils
    image = acquisition.image(acquisition.spectrum(image))
    found = acquisition.consistent(image, acquisition.forward(image))
    np.testing.assert_allclose(found, image, atol=1e-5)


def test_data_consistency_puts_the_values_of_each_coil_back(coils):
    acquisition, image, kspace = coils
    mask = np.broadcast_to(acquisition.mask[:, None], kspace.shape[:-1])
    filled = np.array(acquisition.spectrum(image))
    filled[mask] = np.asarray(kspace)[mask]
    combined = complex_of(acquisition.maps).conj() * centred(np.fft.ifft2, filled)
    found = complex_of(acquisition.consistent(image, kspace))
    np.testing.assert_allclose(found, combined.sum(1), atol=1e-5)


def test_one_coil_with_the_map_one_is_one_coil_bit_for_bit(case):
    alone, image, kspace = case
    maps = jnp.zeros((2, 1, *image.shape[1:])).at[..., 0].set(1)
    acquisition = Acquisition(alone.mask, maps)

    @jax.jit
    def results(acquisition, image, kspace):
        return (
            acquisition.forward(image),
            acquisition.adjoint(kspace),
            acquisition.consistent(image, kspace),
        )

    forward, *images = results(acquisition, image, kspace[:, None])
    wanted = results(alone, image, kspace)
    for one, other in zip((forward[:, 0], *images), wanted, strict=True):
        assert (one == other).all()
