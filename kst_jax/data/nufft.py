"""Fourier transforms between images and points off the grid, on the host.

They are those of FINUFFT (Barnett, Magland and af Klinteberg 2019), which is quicker on
a CPU than `kst_jax.nufft` and can run in the threads that prepare batches. Units and
scale are the same.
"""

from types import ModuleType

import numpy as np

from kst_jax.errors import InputError

_PRECISION = 1e-6
# Weights need not be precise.
_ITERATIONS, _ROUGH = 8, 1e-3


def to_samples(image: np.ndarray, points: np.ndarray) -> np.ndarray:
    """Transforms images (..., H, W) to samples (..., R, S) at points (R, S, 2)."""
    shape = image.shape[-2:]
    samples = _interpolated(image, points, shape)
    return samples / np.float32(np.sqrt(shape[0] * shape[1]))


def to_image(
    samples: np.ndarray, points: np.ndarray, shape: tuple[int, int]
) -> np.ndarray:
    """Applies the adjoint of `to_samples`: samples (..., R, S) to (..., H, W)."""
    summed = _summed(samples, points, shape, shape)
    return summed / np.float32(np.sqrt(shape[0] * shape[1]))


def compensation(points: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """Returns weights (R, S), float32, that compensate for the density of points.

    J. G. Pipe and P. Menon, "Sampling density compensation in MRI" (MRM 1999): under
    these weights the samples, blurred by a kernel, add up to 1 at each of them. The
    kernel's transform is a disc's autocorrelation. So it is the same in all directions,
    and weights stay as they are when a trajectory turns, but at the edge of k-space.
    The points of a whole grid have weight 1, single ones up to 4 / pi.

    Args:
      points: (R, S, 2) in units of 1 / field of view.
      shape: rows and columns (H, W) of the image.
    """
    rows, columns = (np.arange(-n, n) / n for n in shape)
    radius = np.minimum(np.hypot(rows[:, None], columns), 1)
    disc = 2 / np.pi * (np.arccos(radius) - radius * np.sqrt(1 - radius**2))
    kernel = (disc / (shape[0] * shape[1])).astype(np.float32)
    weights = np.ones(points.shape[:-1], np.float32)
    for _ in range(_ITERATIONS):
        spread = _summed(
            weights.astype(np.complex64), points, shape, kernel.shape, _ROUGH
        )
        blurred = _interpolated(spread * kernel, points, shape, _ROUGH).real
        weights /= np.maximum(blurred, np.float32(1e-6))
    return weights


def _interpolated(
    image: np.ndarray,
    points: np.ndarray,
    field: tuple[int, ...],
    precision: float = _PRECISION,
) -> np.ndarray:
    rows, columns = _radians(points, field)
    stack = np.ascontiguousarray(image, np.complex64).reshape(-1, *image.shape[-2:])
    found = _package().nufft2d2(
        rows, columns, stack, eps=precision, isign=-1, nthreads=1
    )
    return found.reshape(*image.shape[:-2], *points.shape[:-1])


def _summed(
    samples: np.ndarray,
    points: np.ndarray,
    field: tuple[int, ...],
    shape: tuple[int, ...],
    precision: float = _PRECISION,
) -> np.ndarray:
    rows, columns = _radians(points, field)
    stack = np.ascontiguousarray(samples, np.complex64).reshape(-1, rows.size)
    found = _package().nufft2d1(
        rows, columns, stack, shape, eps=precision, isign=1, nthreads=1
    )
    return found.reshape(*samples.shape[:-2], *shape)


def _radians(points: np.ndarray, field: tuple[int, ...]) -> tuple:
    """Returns phases (R S,) along rows and columns from one pixel to the next."""
    phase = (2 * np.pi * points / np.array(field)).reshape(-1, 2).astype(np.float32)
    return np.ascontiguousarray(phase[:, 0]), np.ascontiguousarray(phase[:, 1])


def _package() -> ModuleType:
    try:
        import finufft
    except ImportError:
        raise InputError(
            "sampling off the grid needs the package finufft; install it with "
            "pip install 'kst-jax[nufft]'"
        ) from None
    return finufft
