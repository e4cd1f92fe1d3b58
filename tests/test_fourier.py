"""The Fourier pair as operators, and against numpy."""

import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax import fourier
from kst_jax.data.fourier import ifftc_middle

SHAPES = [(8, 8), (7, 10), (9, 5)]


def signal(shape, seed=0):
    return np.random.default_rng(seed).normal(size=(3, *shape, 2)).astype(np.float32)


@pytest.mark.parametrize("shape", SHAPES)
def test_fft_is_numpys(shape):
    x = signal(shape)
    z = np.fft.ifftshift(x[..., 0] + 1j * x[..., 1], axes=(1, 2))
    z = np.fft.fftshift(np.fft.fft2(z, norm="ortho"), axes=(1, 2))
    got = fourier.fft2c(jnp.asarray(x))
    np.testing.assert_allclose(got, np.stack([z.real, z.imag], -1), atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_pair_is_unitary(shape):
    x, y = jnp.asarray(signal(shape)), jnp.asarray(signal(shape, 1))
    np.testing.assert_allclose(fourier.ifft2c(fourier.fft2c(x)), x, atol=1e-5)
    # <F x, y> = <x, F^-1 y>: real and imaginary parts of the inner product
    left = jnp.vdot(fourier.to_complex(fourier.fft2c(x)), fourier.to_complex(y))
    right = jnp.vdot(fourier.to_complex(x), fourier.to_complex(fourier.ifft2c(y)))
    np.testing.assert_allclose(left, right, rtol=1e-4)


def test_a_constant_image_has_its_energy_in_the_centre():
    spectrum = np.array(fourier.fft2c(jnp.ones((1, 6, 8, 2))))
    assert spectrum[0, 3, 4] == pytest.approx([48**0.5, 48**0.5])
    spectrum[0, 3, 4] = 0
    np.testing.assert_allclose(spectrum, 0, atol=1e-5)


def test_magnitude_is_that_of_complex_numbers():
    x = signal((4, 4))
    np.testing.assert_allclose(
        fourier.magnitude(jnp.asarray(x)), np.abs(x[..., 0] + 1j * x[..., 1]), rtol=1e-6
    )


@pytest.mark.parametrize("rows", [4, 5])
@pytest.mark.parametrize("count", [8, 9])
def test_the_middle_of_transformed_rows_is_numpys(count, rows):
    kspace = signal((count, 6))
    kspace = kspace[..., 0] + 1j * kspace[..., 1]
    z = np.fft.ifft(np.fft.ifftshift(kspace, axes=1), axis=1, norm="ortho")
    z = np.fft.fftshift(z, axes=1)
    first = (count - rows) // 2
    np.testing.assert_allclose(
        ifftc_middle(kspace, rows), z[:, first : first + rows], atol=1e-6
    )
