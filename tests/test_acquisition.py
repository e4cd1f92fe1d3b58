"""The acquisition as an operator, against numpy's Fourier transform."""

import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax.acquisition import Acquisition

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
