"""The centred orthonormal Fourier pair on the host, for the input pipeline.

The same transforms as in `kst_jax.fourier`, of complex numpy arrays: input workers
compute without JAX.
"""

from collections.abc import Callable

import numpy as np


def fft2c(image: np.ndarray) -> np.ndarray:
    """Complex images (..., H, W) to centred k-space, complex64."""
    return _centred(np.fft.fft2, image)


def ifft2c(kspace: np.ndarray) -> np.ndarray:
    """Centred k-space (..., H, W) to complex images, complex64."""
    return _centred(np.fft.ifft2, kspace)


def _centred(transform: Callable, x: np.ndarray) -> np.ndarray:
    x = np.fft.ifftshift(x, axes=(-2, -1))
    x = transform(x, axes=(-2, -1), norm="ortho")
    return np.fft.fftshift(x, axes=(-2, -1)).astype(np.complex64, copy=False)
