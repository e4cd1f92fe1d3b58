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

    Arguments as for `write_h5`. Voxel sizes, position and directions of slices come
    from the scan's header. fastMRI's files lack position and directions, so these stay
    unknown. Repetitions and contrasts are further volumes. The phases, if wanted, are
    volumes after the magnitudes.
    """
    parts = [np.abs(image_SxHxW)] + [np.angle(image_SxHxW)] * phase
    count, rows, columns = image_SxHxW.shape
    slices = geometry.slices if geometry and geometry.slices else count
    volume = np.concatenate(parts).astype(np.float32)
    volume = volume.reshape(-1, slices, rows, columns)
    # (volumes, slices, rows, columns) to x along columns, y up along rows, z, volumes.
    volume = np.moveaxis(volume, (0, 1, 2, 3), (3, 2, 1, 0))[:, ::-1]
    volume = volume[..., 0] if volume.shape[-1] == 1 else volume
    image = nib.Nifti1Image(volume, _affine(geometry, rows))
    image.header.set_xyzt_units("mm" if geometry else "unknown")
    if geometry is None or geometry.affine is None:
        image.set_sform(None, 0)
        image.set_qform(None, 0)
    # nibabel chooses the format by the suffix, but the temporary file has none.
    path.write_bytes(image.to_bytes())


def _affine(geometry: Geometry | None, rows: int) -> np.ndarray:
    """Affine of a volume's axes (columns, rows from bottom to top, slices) in mm."""
    if geometry is None or geometry.affine is None:
        height, width, depth = geometry.voxel if geometry else (1.0, 1.0, 1.0)
        return np.diag([width, height, depth, 1.0])
    swap = np.eye(4)[[1, 0, 2, 3]]
    swap[0, 1:] = -1, 0, rows - 1
    return geometry.affine @ swap


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
