"""The centred orthonormal Fourier pair on the host, for the input pipeline.

The same transforms as in `kst_jax.fourier`, of complex numpy arrays: input workers
compute without JAX.
"""

from collections.abc import Callable

import numpy as np
from scipy import fft

_SPATIAL = (-2, -1)


def fft2c(image: np.ndarray) -> np.ndarray:
    """Complex images (..., H, W) to centred k-space, complex64."""
    return fftc(image, _SPATIAL)


def ifft2c(kspace: np.ndarray) -> np.ndarray:
    """Centred k-space (..., H, W) to complex images, complex64."""
    return ifftc(kspace, _SPATIAL)


def fftc(image: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The centred Fourier transform along some axes, complex64."""
    return _centred(fft.fftn, image, axes)


def ifftc(kspace: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """The inverse of `fftc`, complex64."""
    return _centred(fft.ifftn, kspace, axes)


def ifftc_middle(kspace: np.ndarray, rows: int) -> np.ndarray:
    """Transforms the rows alone, and keeps those in the middle.

    Args:
      kspace: (..., H, W).
      rows: rows to keep about the centre, at most H.

    Returns:
      Hybrid space (..., rows, W), complex64: rows of the image, columns of k-space.
    """
    count = kspace.shape[-2]
    x = fft.ifft(kspace, axis=-2, norm="ortho")
    place = (count - rows) // 2 - count // 2 + np.arange(rows)  # 0 in the middle
    # The centre of k-space at index count // 2, not 0, is a phase along the image.
    phase = np.exp(-2j * np.pi * (place * (count // 2) % count) / count)
    middle = np.take(x, place % count, axis=-2)
    middle *= phase[:, None].astype(middle.dtype)
    return middle.astype(np.complex64, copy=False)


def _centred(transform: Callable, x: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    x = np.fft.ifftshift(x, axes=axes)
    # SciPy's transforms of float32 take two thirds of the time of NumPy's.
    x = transform(x, axes=axes, norm="ortho", overwrite_x=True)  # a copy
    return np.fft.fftshift(x, axes=axes).astype(np.complex64, copy=False)
