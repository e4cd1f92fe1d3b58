"""Fourier transforms between images and points of k-space off the grid.

They are those of the package nufftax, which is pure JAX: it runs on CPUs, GPUs and
TPUs, and has gradients. `pip install 'kst-jax[nufft]'` installs it.

Points of k-space are given in units of 1 / field of view along rows and columns, from
the centre: point (0, 0) is the centre, and a grid of H rows has those from -H // 2. On
these the transform is `kst_jax.fourier.fft2c`.
"""

from types import ModuleType

import jax
import jax.numpy as jnp

from kst_jax.errors import InputError

_PRECISION = 1e-6


def to_samples(image: jax.Array, trajectory_Nx2: jax.Array) -> jax.Array:
    """Transforms images (..., H, W), complex, to samples (..., N) on a trajectory."""
    rows, columns = image.shape[-2:]
    row_N, column_N = _radians(trajectory_Nx2, (rows, columns))
    samples = _package().nufft2d2(column_N, row_N, image, eps=_PRECISION, isign=-1)
    return samples / jnp.sqrt(rows * columns)


def to_image(
    samples: jax.Array, trajectory_Nx2: jax.Array, shape: tuple[int, int]
) -> jax.Array:
    """Applies the adjoint of `to_samples`: samples (..., N) to images (..., H, W)."""
    return _summed(samples, trajectory_Nx2, shape, shape) / jnp.sqrt(
        shape[0] * shape[1]
    )


def point_spread(
    weights_N: jax.Array, trajectory_Nx2: jax.Array, shape: tuple[int, int]
) -> jax.Array:
    """Returns how weighted samples blur an image, as a transfer function.

    Sampling an image, weighting the samples and applying the adjoint is a convolution.
    It is exact on the grid of twice the rows and columns (Wajer and Pruessmann, ISMRM
    2001), where it is a product with this function.

    Args:
      weights_N: weights.
      trajectory_Nx2: the samples' places.
      shape: rows and columns (H, W) of the image.

    Returns:
      (2 H, 2 W), real; the zero frequency comes first.
    """
    rows, columns = shape
    double = 2 * rows, 2 * columns
    weights = weights_N.astype(jnp.complex64)
    spread = _summed(weights, trajectory_Nx2, shape, double) / (rows * columns)
    return jnp.fft.fft2(jnp.fft.ifftshift(spread)).real


def _summed(
    samples: jax.Array,
    trajectory_Nx2: jax.Array,
    field: tuple[int, int],
    shape: tuple[int, int],
) -> jax.Array:
    row_N, column_N = _radians(trajectory_Nx2, field)
    return _package().nufft2d1(
        column_N, row_N, samples, shape[::-1], eps=_PRECISION, isign=1
    )


def _radians(trajectory_Nx2: jax.Array, field: tuple[int, int]) -> tuple:
    """Returns phases (N,) along rows and columns from one pixel to the next."""
    row_N, column_N = 2 * jnp.pi * trajectory_Nx2.T
    return row_N / field[0], column_N / field[1]


def _package() -> ModuleType:
    try:
        import nufftax
    except ImportError:
        raise InputError(
            "sampling off the grid needs the package nufftax; install it with "
            "pip install 'kst-jax[nufft]'"
        ) from None
    return nufftax
