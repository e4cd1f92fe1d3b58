"""Centred orthonormal Fourier transforms of signals stored as two real channels.

Images and spectra are real arrays (..., H, W, 2) with the real and imaginary part last,
so that real-valued networks can process them; all axes before H are batch axes. Both
transforms preserve norms, and each is the other's inverse and adjoint.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp

_SPATIAL = (-2, -1)
_READOUT = (-2,)


def to_complex(x: jax.Array) -> jax.Array:
    """Joins two real channels (..., 2) into a complex array (...)."""
    return jax.lax.complex(x[..., 0], x[..., 1])


def to_channels(x: jax.Array) -> jax.Array:
    """Splits a complex array (...) into real and imaginary channels (..., 2)."""
    return jnp.stack([x.real, x.imag], axis=-1)


def magnitude(x: jax.Array) -> jax.Array:
    """Magnitude (...) of a two-channel signal (..., 2)."""
    return jnp.hypot(x[..., 0], x[..., 1])


def fft2c(image: jax.Array) -> jax.Array:
    """Transforms an image (..., H, W, 2) to centred k-space of the same shape."""
    return _centred(jnp.fft.fftn, image, _SPATIAL)


def ifft2c(kspace: jax.Array) -> jax.Array:
    """Transforms centred k-space (..., H, W, 2) to an image of the same shape."""
    return _centred(jnp.fft.ifftn, kspace, _SPATIAL)


def fft_readout(hybrid: jax.Array) -> jax.Array:
    """Transforms hybrid space (..., H, W, 2), an image along H, to k-space."""
    return _centred(jnp.fft.fftn, hybrid, _READOUT)


def ifft_readout(kspace: jax.Array) -> jax.Array:
    """Transforms k-space (..., H, W, 2) along the readout, H, to hybrid space."""
    return _centred(jnp.fft.ifftn, kspace, _READOUT)


def _centred(transform: Callable, x: jax.Array, axes: tuple[int, ...]) -> jax.Array:
    z = jnp.fft.ifftshift(to_complex(x), axes=axes)
    z = transform(z, axes=axes, norm="ortho")
    return to_channels(jnp.fft.fftshift(z, axes=axes))
