"""Where the slices of an ISMRMRD scan lie in the patient."""

import dataclasses

import numpy as np

from kst_jax.data.readers.mrd_grid import Grid
from kst_jax.data.readers.mrd_lines import Acquired
from kst_jax.data.samples import Geometry

_FLAT = 1e-2  # how far directions may be from orthogonal, and slices from even steps


def geometry_of(
    head: np.ndarray, lines: Acquired, grid: Grid
) -> tuple[Geometry, tuple[str, ...]]:
    """Finds where the images lie.

    Args:
      head: the acquisitions' headers.
      lines: the lines of images.
      grid: the sizes.

    Returns:
      The geometry, without an affine where the header does not give one; and doubts.
    """
    on = np.flatnonzero(lines.image >= 0)
    ranks, first = np.unique(lines.rank[on], return_index=True)
    of_slices = head[lines.number[on[first]]]
    series = len(np.unique(lines.series[on]))
    whole = lines.images == series * len(ranks)
    plain = Geometry(grid.matrix, grid.voxel, grid.measured)
    if not whole:
        return plain, (
            f"has {lines.images} images, but {series} contrasts or repetitions of "
            f"{len(ranks)} slices. Images are numbered as if they were one volume. "
            "Was the scan stopped?",
        )
    plain = dataclasses.replace(plain, slices=len(ranks))
    names = ("read_dir", "phase_dir", "slice_dir")
    axes = np.stack([of_slices[name].astype(float) for name in names], axis=-1)
    if not axes.any():
        return plain, (
            "does not give the directions and positions of its slices, so volumes "
            "written from it have voxel sizes alone.",
        )
    affine = _affine(axes, of_slices["position"].astype(float), grid)
    if affine is None:
        return plain, (
            "has slices that are not parallel, evenly spaced and of orthogonal "
            "directions, so volumes written from it have voxel sizes alone.",
        )
    depth = float(np.linalg.norm(affine[:3, 2]))
    voxel = (*grid.voxel[:2], depth)
    return dataclasses.replace(plain, voxel=voxel, affine=affine), ()


def _affine(axes: np.ndarray, position: np.ndarray, grid: Grid) -> np.ndarray | None:
    """Returns the affine of (row, column, slice) in RAS and mm, or None.

    Args:
      axes: (S, 3, 3), columns are the directions of readout, phase and slice.
      position: (S, 3), where the field of view's centre lies.
      grid: the sizes.
    """
    steps = np.diff(position, axis=0)
    step = steps.mean(axis=0) if len(steps) else axes[0, :, 2] * grid.voxel[2]
    size = np.linalg.norm(step)
    good = (
        np.isfinite(position).all()
        and np.isfinite(axes).all()
        and np.abs(axes - axes[0]).max() < _FLAT
        and np.abs(axes[0].T @ axes[0] - np.eye(3)).max() < _FLAT
        and size > 0
        and np.abs(np.cross(step / size, axes[0, :, 2])).max() < _FLAT
        and (not len(steps) or np.abs(steps - step).max() < _FLAT * size)
    )
    if not good:
        return None
    affine = np.eye(4)
    affine[:3, 0] = axes[0, :, 0] * grid.voxel[0]
    affine[:3, 1] = axes[0, :, 1] * grid.voxel[1]
    affine[:3, 2] = step
    rows, columns = grid.matrix
    # The image is cut about its centre, which lies at the position.
    middle = rows // 2, grid.columns // 2 - (grid.columns - columns) // 2, 0
    affine[:3, 3] = position[0] - affine[:3, :3] @ middle
    return np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine  # LPS to RAS
