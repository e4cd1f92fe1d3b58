"""One slice that was undersampled at the scanner, at the size that networks see."""

import dataclasses

import numpy as np

from kst_jax.data import native, samples
from kst_jax.data.samples import Geometry, Sample
from kst_jax.errors import InputError
from kst_jax.patches import samples_lines


@dataclasses.dataclass(frozen=True, eq=False)
class Measurement:
    """One slice, ready for a network.

    Attributes:
      kspace: complex64 (H, W), or (C, H, W) of several coils, zero where not sampled;
        an oversampled readout is cropped to the rows of the image.
      mask: (H, W), True where sampled.
      calibration: k-space from which sensitivity maps are estimated: of the lines that
        were measured for them, or all of it.
      empty: (H, W), True in columns that the scanner did not measure because k-space is
        taken to be zero there.
      geometry: the scan's grid; None if the scan has no header.
    """

    kspace: np.ndarray
    mask: np.ndarray
    calibration: np.ndarray
    empty: np.ndarray
    geometry: Geometry | None

    @property
    def acceleration(self) -> float:
        """Points that a full scan would measure, over sampled points."""
        return float((~self.empty).sum() / self.mask.sum())


def of_sample(sample: Sample, rows: int) -> Measurement:
    """Finds the measured points of a slice and crops its readout to so many rows.

    Raises:
      InputError: the slice's mask cannot be used.
    """
    empty = native.empty_columns(sample, sample.kspace.shape[-2:])
    return cropped(sample, samples.sampling_mask(sample, empty), empty, rows)


def cropped(
    sample: Sample, mask: np.ndarray, empty: np.ndarray, rows: int | None = None
) -> Measurement:
    """Crops an oversampled readout.

    Args:
      sample: the slice.
      mask: (H, W), True where it is sampled.
      empty: (H, W), True where the scanner never measures.
      rows: rows to keep, at most H; by default those of the header's image.

    Raises:
      InputError: the readout is oversampled, but columns are not whole.
    """
    kspace, geometry = np.where(mask, sample.kspace, 0), sample.geometry
    if rows is None:
        rows = min(geometry.matrix[0], len(mask)) if geometry else len(mask)
    mask = cropped_mask(mask, rows, sample.where)
    kspace = samples.crop_readout(kspace, rows).astype(np.complex64)
    calibration = kspace
    if sample.calibration is not None:
        calibration = samples.crop_readout(sample.calibration, rows)
    return Measurement(kspace, mask, calibration, empty[:rows], geometry)


def cropped_mask(mask: np.ndarray, rows: int, where: str) -> np.ndarray:
    """Returns the mask (rows, W) of a readout that is cropped from (H, W).

    Raises:
      InputError: columns are not whole, which cropping in image space needs.
    """
    if rows < len(mask) and not samples_lines(mask):
        raise InputError(
            f"{where}: the readout has {len(mask)} rows for an image of {rows}, but "
            "its points are sampled one by one, so it cannot be cropped. Crop the "
            "readout before undersampling."
        )
    return mask[:rows]
