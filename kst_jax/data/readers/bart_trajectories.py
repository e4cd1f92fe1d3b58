"""BART's k-space off the grid: its trajectory lies in a file of its own."""

import dataclasses
from pathlib import Path

import numpy as np

from kst_jax import trajectories
from kst_jax.data import off_grid
from kst_jax.data.off_grid import OffGridVolume, Readouts, TrajectoryOptions
from kst_jax.data.readers import bart
from kst_jax.data.readers.fastmri import require_transformable
from kst_jax.data.readers.npy import memory_map
from kst_jax.errors import InputError

# Places of the dimensions that k-space may have, after one of size 1.
_SAMPLES, _READOUTS, _COILS, _SLICES = 1, 2, 3, 13
_LEAST, _MOST = 8, 2**14  # rows and columns of an image


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """Reads the slices of one array.

    Attributes:
      path: the .cfl; it is mapped into memory again for every slice.
      dimensions: sizes of the array, the first changing fastest.
      points: the trajectory of all slices (R, S, 2), in units of 1 / field of view.
    """

    path: Path
    dimensions: tuple[int, ...]
    points: np.ndarray

    def __call__(self, index: int) -> Readouts:
        """Reads one slice; raises InputError if values are not finite."""
        sizes = [self.dimensions[n] for n in (_SLICES, _COILS, _READOUTS, _SAMPLES)]
        array = np.memmap(self.path, "<c8", "r", shape=tuple(sizes))
        samples = np.ascontiguousarray(array[index])
        where = f"{self.path}: slice {index}"
        require_transformable(samples, where)
        return Readouts(samples if sizes[1] > 1 else samples[0], self.points, where)


def open_volume(path: Path, options: TrajectoryOptions) -> OffGridVolume:
    """Reads the header of k-space (1, samples, readouts, coils), and its trajectory.

    The matrix is square: twice the largest coordinate, as in BART.

    Args:
      path: the .cfl of k-space.
      options: name the file of the trajectory, in units of 1 / field of view.

    Raises:
      InputError: the header is no such k-space's, or the trajectory does not fit it.
    """
    assert options.path is not None
    if options.units not in ("", "1/fov"):
        raise InputError(
            f"--trajectory_units={options.units}: BART's files do not tell the field "
            "of view that this needs; store the trajectory in units of 1 / field of "
            "view, as BART does"
        )
    dimensions = bart.dimensions_of(path)
    if dimensions[0] != 1:
        raise InputError(
            f"{path}: has {dimensions[0]} values in dimension 0, so its k-space is on "
            "the grid; off it, dimensions are (1, samples, readouts, coils). Leave out "
            "--trajectory, or name the file that belongs to it."
        )
    allowed = {_SAMPLES: "samples", _READOUTS: "readouts", _COILS: "coils"}
    bart.require_fit(path, dimensions, allowed | {_SLICES: "slices"})
    points = read_trajectory(options.path)
    if points.shape[:2] != (dimensions[_READOUTS], dimensions[_SAMPLES]):
        raise InputError(
            f"{options.path}: has {points.shape[0]} readouts of {points.shape[1]} "
            f"samples, but {path} {dimensions[_READOUTS]} of {dimensions[_SAMPLES]}. "
            "Use the trajectory of the scan."
        )
    largest = float(np.abs(points).max())
    size = 2 * int(np.ceil(min(largest, _MOST) - 1e-3))
    if not _LEAST <= size <= _MOST:
        raise InputError(
            f"{options.path}: reaches {largest:.4g}, which means a matrix of {size} x "
            f"{size}. Store the trajectory in units of 1 / field of view, so that the "
            "largest coordinate is half of the matrix."
        )
    off_grid.require_enough(points, str(options.path))
    times = trajectories.acceleration(points, (size, size))
    return OffGridVolume(
        path=path,
        shape=(size, size),
        coils=dimensions[_COILS],
        depth=dimensions[_SLICES],
        read=Reader(path, dimensions, points),
        measured=False,
        described=(
            f"{points.shape[0]} readouts of {points.shape[1]} samples, "
            f"{times:.3g} times undersampled.",
        ),
    )


def read_trajectory(path: Path) -> np.ndarray:
    """Reads points (R, S, 2), float32.

    Args:
      path: a .cfl of dimensions (3, samples, readouts), or a .npy of shape (readouts,
        samples, 2) or (readouts, samples, 3); the first coordinate is along rows.

    Raises:
      InputError: it is no such file.
    """
    if path.suffix.lower() not in (".cfl", ".npy"):
        raise InputError(f"{path}: is no .cfl or .npy; give --trajectory such a file.")
    if path.suffix.lower() == ".npy":
        points = np.asarray(memory_map(path))
        if points.ndim != 3 or points.shape[-1] not in (2, 3):
            raise InputError(
                f"{path}: has shape {points.shape}. Store a trajectory as (readouts, "
                "samples, 2)."
            )
    else:
        if not path.exists():
            raise InputError(f"{path}: does not exist; give --trajectory a file.")
        dimensions = bart.dimensions_of(path)
        bart.require_fit(
            path, dimensions, {0: "coordinates", 1: "samples", 2: "readouts"}
        )
        if dimensions[0] not in (2, 3):
            raise InputError(
                f"{path}: has {dimensions[0]} coordinates a point, but trajectories "
                "have 2 or 3. Give --trajectory the file of the trajectory."
            )
        points = np.fromfile(path, "<c8").reshape(dimensions[2::-1])
    if points.dtype.kind not in "fiuc" or (points.imag != 0).any():
        raise InputError(f"{path}: holds values that are no real numbers; repair it.")
    return off_grid.in_plane(points.real.astype(np.float32), str(path))
