"""Slices as scanners measure them, without resizing: fastMRI's protocol.

The readout is fully sampled, so its oversampling is cropped in image space. The columns
stay as measured, since undersampling is along them. Losses and scores are of the field
that the scanner shows, the middle of the image.
"""

from typing import NamedTuple

import numpy as np

from kst_jax.data.fourier import fftc, ifftc, ifftc_middle
from kst_jax.data.samples import Sample
from kst_jax.data.transforms import centre_crop
from kst_jax.data.volumes import Volume
from kst_jax.errors import InputError

Shape = tuple[int, int]


class Grid(NamedTuple):
    """Sizes that slices of one batch share.

    Attributes:
      shape: rows and columns (H, W) of the k-space that networks see.
      field: rows and columns (h, w) in the middle that losses and scores count; None
        for all.
    """

    shape: Shape
    field: Shape | None = None


class View(NamedTuple):
    """A slice before undersampling.

    Attributes:
      image: fully sampled, complex64 (H, W), or (C, H, W) of several coils;
        zero-filled if the scanner undersampled the scan.
      simulated: whether it has neither phase nor noise of a scanner.
      empty: (H, W), True where k-space is zero without a measurement; None if nowhere.
      reference: (h, w), the magnitudes that scores compare with, in the scan's units;
        None if they are the image's.
      peak: largest value of the reference in the volume; None if unknown.
      kspace: complex64, the image's centred k-space; None if it has yet to be computed.
    """

    image: np.ndarray
    simulated: bool
    empty: np.ndarray | None = None
    reference: np.ndarray | None = None
    peak: float | None = None
    kspace: np.ndarray | None = None


def grid_of(volume: Volume) -> Grid:
    """Returns the sizes of a scan's slices."""
    field = _smaller(volume.matrix, volume.shape)
    return Grid((field[0], volume.shape[1]), field)


def _smaller(one: Shape, other: Shape) -> Shape:
    return min(one[0], other[0]), min(one[1], other[1])


def view(sample: Sample, grid: Grid) -> View:
    """Crops the readout of a fully sampled slice and finds what it is compared with.

    Raises:
      InputError: k-space is not zero in columns that the header calls unmeasured.
    """
    field = grid.field or grid.shape
    hybrid = ifftc_middle(sample.kspace, grid.shape[0])  # the readout is its rows
    empty = empty_columns(sample, hybrid.shape[-2:])
    image = ifftc(hybrid, axes=(-1,))
    reference = root_sum_of_squares(image) if sample.target is None else sample.target
    reference = centre_crop(reference, _smaller(reference.shape, field))
    kspace = fftc(hybrid, axes=(-2,))
    return View(image, sample.simulated, empty, reference, sample.peak, kspace)


def root_sum_of_squares(image: np.ndarray) -> np.ndarray:
    """Returns magnitudes (H, W) of an image, or of the images of coils (C, H, W)."""
    if image.ndim == 2:
        return np.abs(image)
    return np.sqrt((image.real**2 + image.imag**2).sum(axis=0))


def empty_columns(sample: Sample, shape: Shape) -> np.ndarray:
    """Returns (H, W), True in the columns that the scanner did not measure.

    Raises:
      InputError: k-space is not zero there.
    """
    if sample.geometry is None or sample.geometry.columns is None:
        return np.zeros(shape, bool)
    first, stop = sample.geometry.columns
    empty = sample.geometry.empty(shape)
    if sample.kspace[..., empty[0]].any():
        raise InputError(
            f"{sample.where}: k-space is not zero in columns that the header calls "
            f"unmeasured (all but {first} to {min(stop, shape[1]) - 1}). Copy the file "
            "again, or remove its header."
        )
    return empty
