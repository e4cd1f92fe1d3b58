"""A scan that was measured off the grid: readouts with their places in k-space."""

import dataclasses
from collections.abc import Callable
from pathlib import Path

import numpy as np

from kst_jax import trajectories
from kst_jax.data.samples import Geometry
from kst_jax.errors import InputError

# Readouts across k-space, at least: fewer leave nothing to reconstruct.
_FEWEST = 3
# How far a 2D trajectory may leave its plane, as a share of its extent in it.
_FLAT = 1e-3


@dataclasses.dataclass(frozen=True, eq=False)
class Readouts:
    """The samples of one slice.

    Attributes:
      samples: complex64 (R, S), or (C, R, S) of several coils: R readouts of S samples,
        in the scan's units, orthonormal as in `kst_jax.data.nufft`.
      points: their places (R, S, 2), row then column, float32 in units of 1 / field of
        view.
      where: names the slice in messages.
    """

    samples: np.ndarray
    points: np.ndarray
    where: str


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class OffGridVolume:
    """A scan as its reader gives it: metadata at once, readouts on demand.

    It takes the place of `volumes.Volume` for scans that have no k-space on the grid.

    Attributes:
      path: the scan's file.
      shape: rows and columns of the images; they show the field of view that the
        trajectory's units refer to.
      coils: number of receiver coils.
      depth: number of slices.
      read: gives the readouts of a slice.
      measured: whether the k-space is known to be measured.
      patient: who was scanned; empty if the file does not say.
      geometry: the grid of the images; None if the file has no header.
      doubts: what is probably wrong.
      described: how the scan was made, a sentence each.
    """

    path: Path
    shape: tuple[int, int]
    coils: int
    depth: int
    read: Callable[[int], Readouts]
    measured: bool
    patient: str = ""
    geometry: Geometry | None = None
    doubts: tuple[str, ...] = ()
    described: tuple[str, ...] = ()

    @property
    def slices(self) -> range:
        """Numbers of the slices that can be read."""
        return range(self.depth)

    @property
    def pixel(self) -> tuple[float, float] | None:
        """Height and width of a pixel in mm; None if the file does not tell."""
        return self.geometry.voxel[:2] if self.geometry else None


@dataclasses.dataclass(frozen=True)
class TrajectoryOptions:
    """What a user says about trajectories.

    Attributes:
      path: file of the trajectory, for files that do not hold it; None for others.
      units: of the points, a name in `kst_jax.data.trajectory_units`; empty if they are
        to be recognised.
    """

    path: Path | None = None
    units: str = ""


def in_plane(points: np.ndarray, where: str) -> np.ndarray:
    """Returns the first two coordinates of points (..., 2) or (..., 3).

    Raises:
      InputError: points are not finite, all zero, or leave the plane.
    """
    if not np.isfinite(points).all():
        raise InputError(
            f"{where}: its trajectory holds values that are not finite. Copy or "
            "convert the file again."
        )
    largest = np.abs(points[..., :2]).max()
    if not largest > 0:
        raise InputError(
            f"{where}: all points of its trajectory are the centre of k-space. Convert "
            "the file again with its trajectory."
        )
    across = np.abs(points[..., 2:]).max(initial=0)
    if across > _FLAT * largest:
        raise InputError(
            f"{where}: its trajectory reaches {across:.4g} along the third axis, so it "
            "is a 3D scan, but only 2D ones are read. A stack of planes can be "
            "transformed along the third axis; write each slice as a scan."
        )
    return points[..., :2]


def require_enough(points: np.ndarray, where: str) -> None:
    """Raises InputError if readouts (R, S, 2) are too few to give an image."""
    covered, across = trajectories.covered(points), 2 * np.abs(points).max()
    if covered < _FEWEST * across:
        raise InputError(
            f"{where}: {points.shape[0]} readouts of {points.shape[1]} samples run "
            f"over {covered:.0f} points of k-space, less than {_FEWEST} lines across "
            "it. There is nothing to reconstruct; put the readouts of an image "
            "together."
        )
