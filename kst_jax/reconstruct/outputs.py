"""Writes reconstructed scans as fastMRI's HDF5, NIfTI or pictures."""

import dataclasses
import math
from collections.abc import Callable
from pathlib import Path

import h5py
import matplotlib.image
import nibabel as nib
import numpy as np

from kst_jax import figures
from kst_jax.data.samples import Geometry
from kst_jax.programs import files

_DRAWN = 5  # slices in the picture of deviations


@dataclasses.dataclass(frozen=True, eq=False)
class Images:
    """What is reconstructed of a scan, in its units.

    Attributes:
      image: complex images (S, H, W).
      geometry: the scan's grid; None if it has no header.
      deviation: standard deviations (S, H, W) of the magnitudes; None if not wanted.
      members: complex images (S, M, H, W) of the members of an ensemble, each of which
        agrees with the samples as the network does; None of a single network.
    """

    image: np.ndarray
    geometry: Geometry | None
    deviation: np.ndarray | None = None
    members: np.ndarray | None = None


# Arguments: file, images, whether to write the phase.
Writer = Callable[[Path, Images, bool], None]


def write_h5(path: Path, images: Images, phase: bool) -> None:
    """Writes magnitudes in the format of fastMRI's submissions.

    Args:
      path: the file.
      images: of a scan; the geometry is not written.
      phase: whether to write the phase too, in radians.
    """
    found = {"reconstruction": np.abs(images.image)}
    if phase:
        found["phase"] = np.angle(images.image)
    if images.deviation is not None:
        found["deviation"] = images.deviation
    if images.members is not None:
        found["members"] = np.abs(images.members)
        if phase:
            found["members_phase"] = np.angle(images.members)
    with h5py.File(path, "w") as file:
        for name, values in found.items():
            file[name] = values.astype(np.float32)


def write_nifti(path: Path, images: Images, phase: bool) -> None:
    """Writes magnitudes as a NIfTI volume, rows from top to bottom.

    Arguments as for `write_h5`. Voxel sizes, position and directions of slices come
    from the scan's header. fastMRI's files lack position and directions, so these stay
    unknown. Repetitions and contrasts are further volumes. The phases, if wanted, are
    volumes after the magnitudes, and the standard deviations after these; the members
    of an ensemble are not written.
    """
    image, geometry = images.image, images.geometry
    parts = [np.abs(image)] + [np.angle(image)] * phase
    if images.deviation is not None:
        parts.append(images.deviation)
    count, rows, columns = image.shape
    slices = geometry.slices if geometry and geometry.slices else count
    volume = np.concatenate(parts).astype(np.float32)
    volume = volume.reshape(-1, slices, rows, columns)
    # (volumes, slices, rows, columns) to x along columns, y up along rows, z, volumes.
    volume = np.moveaxis(volume, (0, 1, 2, 3), (3, 2, 1, 0))[:, ::-1]
    volume = volume[..., 0] if volume.shape[-1] == 1 else volume
    nifti = nib.Nifti1Image(volume, _affine(geometry, rows))
    nifti.header.set_xyzt_units("mm" if geometry else "unknown")
    if geometry is None or geometry.affine is None:
        nifti.set_sform(None, 0)
        nifti.set_qform(None, 0)
    # nibabel chooses the format by the suffix, but the temporary file has none.
    path.write_bytes(nifti.to_bytes())


def _affine(geometry: Geometry | None, rows: int) -> np.ndarray:
    """Affine of a volume's axes (columns, rows from bottom to top, slices) in mm."""
    if geometry is None or geometry.affine is None:
        height, width, depth = geometry.voxel if geometry else (1.0, 1.0, 1.0)
        return np.diag([width, height, depth, 1.0])
    swap = np.eye(4)[[1, 0, 2, 3]]
    swap[0, 1:] = -1, 0, rows - 1
    return geometry.affine @ swap


def write_png(path: Path, images: Images, phase: bool) -> None:
    """Writes a picture: a mosaic of magnitudes. Arguments as for `write_h5`."""
    del phase
    magnitude = np.abs(images.image)
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


def write(path: Path, images: Images, kind: str, phase: bool) -> None:
    """Writes the images of a scan, whole or not at all."""
    with files.whole(path) as partial:
        FORMATS[kind][1](partial, images, phase)


def draw_deviation(path: Path, images: Images) -> None:
    """Draws a few slices of a scan above their standard deviations."""
    deviation = images.deviation
    assert deviation is not None
    count = len(deviation)
    middles = (np.arange(_DRAWN) + 0.5) * count / _DRAWN
    chosen = np.unique(middles.astype(int))
    image = np.abs(images.image[chosen])
    figures.save(figures.deviation_figure(image, deviation[chosen]), path)
