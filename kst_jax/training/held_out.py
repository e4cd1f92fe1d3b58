"""The error at measured points that a network does not see, in place of a target.

Each image goes through the forward model and is compared with the measured values there
by the normalised l2 and l1 error of SSDU (Yaman et al., MRM 2020).
"""

import jax
import jax.numpy as jnp
import numpy as np

from kst_jax.fourier import fft2c, to_channels, to_complex
from kst_jax.tokens import Batch
from kst_jax.training.averages import transfer

_SMALL = 1e-12  # under roots, whose gradients are then finite at zero


def error(images_SxBxhxwx2: jax.Array, batch: Batch) -> jax.Array:
    """Returns the error (S, B) of images by layer and slice.

    Args:
      images_SxBxhxwx2: at full resolution, or at a lower one. Targets of these would be
        averaged over patches, so their spectrum is compared with the measured one times
        the transfer of that averaging, where their grid has it. That of several coils
        is unknown: their error is 0.
      batch: has held-out points, in a few of which errors may all be 0.
    """
    assert batch.held_out is not None
    assert batch.held_kspace is not None
    shape = images_SxBxhxwx2.shape[2:4]
    if shape == batch.grid:
        spectrum = jax.vmap(batch.cartesian.spectrum)
        return _normalised(
            spectrum(images_SxBxhxwx2), batch.held_kspace, batch.held_out
        )
    if batch.maps is not None:
        return jnp.zeros(images_SxBxhxwx2.shape[:2])
    weights, measured = _averaged(batch.held_out, batch.held_kspace, shape)
    return _normalised(fft2c(images_SxBxhxwx2), measured, weights)


def _normalised(
    spectra: jax.Array, measured: jax.Array, weights_BxHxW: jax.Array
) -> jax.Array:
    """Compares spectra (S, B, ..., H, W, 2) with measured values (B, ..., H, W, 2)."""
    coils = measured.ndim == 5
    points = (-3, -2, -1) if coils else (-2, -1)
    weights = (weights_BxHxW[:, None] if coils else weights_BxHxW)[None]

    def norms(x: jax.Array) -> tuple[jax.Array, jax.Array]:
        squares = jnp.sum(x**2, -1)
        l2 = jnp.sqrt(jnp.sum(weights * squares, points) + _SMALL)
        return l2, jnp.sum(weights * jnp.sqrt(squares + _SMALL), points)

    (l2, l1), (all_l2, all_l1) = norms(spectra - measured[None]), norms(measured[None])
    # Nothing may be held out where a low-resolution grid is, or only zeros.
    known = all_l2 > 2 * _SMALL**0.5
    total = l2 / all_l2 + l1 / jnp.where(known, all_l1, 1)
    return jnp.where(known, total, 0)


def _averaged(
    weights_BxHxW: jax.Array, kspace_BxHxWx2: jax.Array, shape: tuple[int, ...]
) -> tuple[jax.Array, jax.Array]:
    """Returns weights and spectrum of patch averages, without what aliases onto it.

    The highest frequency of an even grid gets no weight: its two signs are one there.
    """
    grid = weights_BxHxW.shape[1:]
    low = tuple(
        slice(N // 2 - n // 2, N // 2 - n // 2 + n)
        for N, n in zip(grid, shape, strict=True)
    )
    down, across = (transfer(N, n) for N, n in zip(grid, shape, strict=True))
    known = np.logical_and.outer(
        *(
            (np.arange(n) > 0) | (n % 2 == 1) | (n == N)
            for N, n in zip(grid, shape, strict=True)
        )
    )
    spectrum = to_complex(kspace_BxHxWx2[:, *low]) * np.outer(down, across)[None]
    return weights_BxHxW[:, *low] * known[None], to_channels(spectrum)
