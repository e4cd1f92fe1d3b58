"""Averages of images over patches: the targets of low-resolution images."""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from kst_jax.data.fourier import fftc


def average_pool(image_BxHxWx2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Averages (B, H, W, 2) over equal patches down to (B, *shape, 2).

    Where patches do not end between pixels, the pixels at their edges count as far as
    they lie inside.
    """
    batch, height, width, channels = image_BxHxWx2.shape
    rows, columns = shape
    if height % rows or width % columns:
        down, across = (_areas(height, rows), _areas(width, columns))
        return jnp.einsum("hH,BHWC,wW->BhwC", down, image_BxHxWx2, across)
    patches = image_BxHxWx2.reshape(
        batch, rows, height // rows, columns, width // columns, channels
    )
    return patches.mean(axis=(2, 4))


def _areas(pixels: int, patches: int) -> np.ndarray:
    """Share (patches, pixels) of each patch that lies in each pixel."""
    size = pixels / patches
    start = size * np.arange(patches)[:, None]
    pixel = np.arange(pixels)
    inside = np.minimum(start + size, pixel + 1) - np.maximum(start, pixel)
    return (np.maximum(inside, 0) / size).astype(np.float32)


@functools.cache
def transfer(pixels: int, patches: int) -> np.ndarray:
    """Returns what averaging over patches does to each frequency of their grid.

    Args:
      pixels: points along an axis.
      patches: equal patches that cover them.

    Returns:
      (patches,) complex64 factors, without aliasing.
    """
    of_frequency = (
        fftc(_areas(pixels, patches), (0,)) @ fftc(np.eye(pixels), (0,)).conj()
    )
    first = pixels // 2 - patches // 2
    return np.diagonal(of_frequency, first)[:patches]
