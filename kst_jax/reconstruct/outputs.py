"""Writes reconstructed scans as fastMRI's HDF5, NIfTI or pictures."""

import math
from collections.abc import Callable
from pathlib import Path

import h5py
import matplotlib.image
import nibabel as nib
import numpy as np

from kst_jax.data.samples import Geometry
from kst_jax.programs import files

# Arguments: file, complex images (S, H, W), geometry, whether to write the phase.
Writer = Callable[[Path, np.ndarray, Geometry | None, bool], None]


def write_h5(
    path: Path, image_SxHxW: np.ndarray, geometry: Geometry | None, phase: bool
) -> None:
    """Writes magnitudes in the format of fastMRI's submissions.

    Args:
      path: the file.
      image_SxHxW: complex images of a scan, in its units.
      geometry: the scan's grid; not written.
      phase: whether to write the phase too, in radians.
    """
    del geometry
    with h5py.File(path, "w") as file:
        file["reconstruction"] = np.abs(image_SxHxW).astype(np.float32)
        if phase:
            file["phase"] = np.angle(image_SxHxW).astype(np.float32)


def write_nifti(
    path: Path, image_SxHxW: np.ndarray, geometry: Geometry | None, phase: bool
) -> None:
    """Writes magnitudes as a NIfTI volume, rows from top to bottom.

    Arguments as for `write_h5`. Voxel sizes come from the scan's header. fastMRI's
    files lack the position and directions of slices, so these stay unknown. The phase,
    if wanted, is a second volume beside the magnitude.
    """
    rows, columns, depth = geometry.voxel if geometry else (1.0, 1.0, 1.0)
    magnitude = np.abs(image_SxHxW).astype(np.float32)
    parts = [magnitude, np.angle(image_SxHxW).astype(np.float32)] if phase else None
    volume = np.stack(parts, -1) if parts else magnitude
    # (slices, rows, columns) to x along columns, y up along rows, z along slices.
    volume = np.moveaxis(volume, (0, 1, 2), (2, 1, 0))[:, ::-1]
    image = nib.Nifti1Image(volume, np.diag([columns, rows, depth, 1.0]))
    image.header.set_xyzt_units("mm" if geometry else "unknown")
    image.set_sform(None, 0)
    image.set_qform(None, 0)
    # nibabel chooses the format by the suffix, but the temporary file has none.
    path.write_bytes(image.to_bytes())


def write_png(
    path: Path, image_SxHxW: np.ndarray, geometry: Geometry | None, phase: bool
) -> None:
    """Writes a picture: a mosaic of magnitudes. Arguments as for `write_h5`."""
    del geometry, phase
    magnitude = np.abs(image_SxHxW)
    count, rows, columns = magnitude.shape
    across = math.ceil(math.sqrt(count))
    mosaic = np.zeros((math.ceil(count / across) * rows, across * columns), np.float32)
    for number, image in enumerate(magnitude):
        top, left = number // across * rows, number % across * columns
        mosaic[top : top + rows, left : left + columns] = image
    brightest = np.percentile(magnitude, 99.8) or 1
    matplotlib.image.imsave(
        path, mosaic, cmap="gray", vmin=0, vmax=brightest, format="png"
    )


FORMATS: dict[str, tuple[str, Writer]] = {
    "h5": (".h5", write_h5),
    "nifti": (".nii", write_nifti),
    "png": (".png", write_png),
}


def write(
    path: Path,
    image_SxHxW: np.ndarray,
    kind: str,
    geometry: Geometry | None,
    phase: bool,
) -> None:
    """Writes the images of a scan, whole or not at all."""
    with files.whole(path) as partial:
        FORMATS[kind][1](partial, image_SxHxW, geometry, phase)
