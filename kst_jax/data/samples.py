"""One slice as measured: its k-space, its sampled points, its sizes."""

import dataclasses

import numpy as np

from kst_jax.data.fourier import fftc, ifftc_middle
from kst_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Geometry:
    """The grid of a scan, from its header.

    Attributes:
      matrix: rows and columns of the image that the scanner reconstructs; scanners
        often measure more rows (the readout).
      voxel: size of a voxel of that image along rows, columns and slices, in mm.
      columns: first column of k-space that the scanner measured, and the one after the
        last; None if all. Columns outside are zero (fastMRI's padding).
      slices: number of slices of a volume; further images are further volumes, such as
        repetitions. None if all images are one volume.
      affine: (4, 4) from row, column and slice of that image to mm along right,
        anterior and superior; None if the header does not tell.
    """

    matrix: tuple[int, int]
    voxel: tuple[float, float, float]
    columns: tuple[int, int] | None = None
    slices: int | None = None
    affine: np.ndarray | None = dataclasses.field(default=None, compare=False)

    def empty(self, shape: tuple[int, ...]) -> np.ndarray:
        """Returns (H, W), True in the columns that the scanner did not measure."""
        empty = np.zeros(shape, bool)
        if self.columns is not None:
            first, stop = self.columns
            empty[:, :first] = empty[:, stop:] = True
        return empty


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Sample:
    """The k-space of one slice.

    Attributes:
      kspace: complex64 (H, W), or (C, H, W) of several coils, centred and orthonormal,
        in the scan's units. Rows are the readout, columns the phase encoding.
      mask: (H, W), True where sampled, or (W,) for whole columns; None if the scan has
        no mask.
      where: names the slice in messages.
      geometry: the scan's grid; None if the scan has no header.
      target: float32 (h, w), the magnitude image that reconstructions are compared
        with, in the scan's units; None if the scan has none. It shows the middle of
        the field of view.
      simulated: whether k-space was computed from a magnitude image.
      calibration: like `kspace`, of the lines that were measured for the coils'
        sensitivities; zero elsewhere. None if no line is marked so.
      peak: largest value of all targets of the volume; None if unknown.
    """

    kspace: np.ndarray
    mask: np.ndarray | None
    where: str
    geometry: Geometry | None = None
    target: np.ndarray | None = None
    simulated: bool = False
    calibration: np.ndarray | None = None
    peak: float | None = None


def sampling_mask(sample: Sample, empty: np.ndarray) -> np.ndarray:
    """Finds the measured points (H, W) of a slice's k-space.

    Without a mask, zeros of the k-space mark the points that were not measured.

    Args:
      sample: the slice.
      empty: (H, W), True where the scanner never measures; a mask's points there do not
        count.

    Raises:
      InputError: the mask does not fit the k-space or contradicts it, or nothing was
        measured.
    """
    height, width = sample.kspace.shape[-2:]
    measured = (sample.kspace.reshape(-1, height, width) != 0).any(axis=0)
    if not measured.any():
        raise InputError(
            f"{sample.where}: its k-space is all zero, so nothing was measured. "
            "Leave the slice out, or copy the file again."
        )
    if sample.mask is None:
        columns = np.broadcast_to(measured.any(axis=0), measured.shape)
        # Few values of a measured column are zero by chance.
        return columns if measured[columns].mean() > 0.99 else measured
    mask = fitting(sample.mask, measured.shape, sample.where) & ~empty
    if (measured & ~mask).any():
        raise InputError(
            f"{sample.where}: k-space is not zero at {int((measured & ~mask).sum())} "
            "points that the mask calls unsampled. Use the mask that belongs to the "
            "file (--mask)."
        )
    if not measured[:, mask.any(axis=0)].any(axis=0).all():
        empty = np.flatnonzero(mask.any(axis=0) & ~measured.any(axis=0))
        raise InputError(
            f"{sample.where}: the mask calls column {empty[0]} sampled ({len(empty)} "
            "such columns), but its k-space is zero. Use the mask that belongs to the "
            "file (--mask), or copy the file again."
        )
    return mask


def left_out(sample: Sample) -> np.ndarray:
    """Returns (W,), True in columns of zeros that the scanner seems to have left out.

    Columns that the header calls unmeasured are not among them. Nor are zeros on both
    sides of all values, which pad interpolated scans; one side may have a column more.
    """
    width = sample.kspace.shape[-1]
    measured = sample.kspace.reshape(-1, width).any(axis=0)
    away = np.abs(np.arange(width) - width // 2)
    inside = away < away[measured].max(initial=0) - 1
    if sample.geometry is not None:
        inside &= ~sample.geometry.empty((1, width))[0]
    return inside & ~measured


def fitting(mask: np.ndarray, shape: tuple[int, ...], where: str) -> np.ndarray:
    """Returns a mask (W,), (1, W) or (H, W) as bool (H, W).

    Raises:
      InputError: the mask has another shape, values other than 0 and 1, or no sampled
        point.
    """
    mask = np.asarray(mask)
    if mask.dtype.kind not in "buif" or not np.isin(mask, (0, 1)).all():
        raise InputError(
            f"{where}: the mask holds values other than 0 and 1 ({mask.dtype}). Give "
            "True or 1 where k-space is sampled."
        )
    if mask.shape not in (shape, shape[-1:], (1, shape[-1])):
        raise InputError(
            f"{where}: a mask of shape {mask.shape} does not fit k-space of "
            f"{shape[0]} rows and {shape[1]} columns. Give one of shape {shape[-1:]}, "
            f"for whole columns, or {shape}."
        )
    if not mask.any():
        raise InputError(
            f"{where}: the mask samples nothing. Use the mask that belongs to the file."
        )
    return np.broadcast_to(mask.astype(bool), shape)


def crop_readout(kspace: np.ndarray, rows: int) -> np.ndarray:
    """Crops the readout in image space, which does not change the sampled columns.

    Args:
      kspace: (..., H, W) complex64; each column is measured as a whole, or zero.
      rows: rows to keep about the centre, at most H.

    Returns:
      (..., rows, W) complex64: the k-space of the cropped image.
    """
    if rows == kspace.shape[-2]:
        return kspace
    return fftc(ifftc_middle(kspace, rows), axes=(-2,))
