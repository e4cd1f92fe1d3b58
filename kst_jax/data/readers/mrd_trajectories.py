"""ISMRMRD scans off the grid: acquisitions that carry their trajectory."""

import dataclasses
from pathlib import Path
from typing import Any

import h5py
import numpy as np

from kst_jax import trajectories
from kst_jax.data import off_grid, trajectory_units
from kst_jax.data.off_grid import OffGridVolume, Readouts
from kst_jax.data.readers import mrd_lines
from kst_jax.data.readers.fastmri import MAX_POINTS, require_transformable
from kst_jax.data.readers.ismrmrd_header import text_of
from kst_jax.data.readers.mrd_geometry import geometry_of
from kst_jax.data.readers.mrd_grid import Grid
from kst_jax.data.readers.mrd_lines import Acquired
from kst_jax.data.trajectory_units import Sizes
from kst_jax.errors import InputError

_MAX_SIZE = 2**14


@dataclasses.dataclass(frozen=True, eq=False)
class Reader:
    """Reads the images of one file.

    Attributes:
      path: the file; it is opened again for every image.
      lines: the lines of images.
      coils: number of receiver coils.
      whitening: (C, C) matrix that makes the coils' noise white; None without a noise
        scan.
      factor: from the file's units of rows and columns to 1 / field of view, (2,).
    """

    path: Path
    lines: Acquired
    coils: int
    whitening: np.ndarray | None
    factor: np.ndarray

    def __call__(self, index: int) -> Readouts:
        """Reads one image.

        Raises:
          InputError: values are not finite, or too few; or a line is shorter than its
            header says.
        """
        lines, where = self.lines, f"{self.path}: slice {index}"
        numbers = np.flatnonzero(lines.image == index).tolist()
        values = mrd_lines.read(self.path, "data", lines.number[numbers])
        stored = mrd_lines.read(self.path, "traj", lines.number[numbers])
        samples = np.stack(
            [
                lines.samples_of(line, one, self.coils, where)
                for line, one in zip(numbers, values, strict=True)
            ],
            axis=1,
        )
        require_transformable(samples, where)
        if self.whitening is not None:
            samples = np.einsum("cd,drs->crs", self.whitening, samples)
        points = np.stack(
            [
                _points(lines, line, one, where)
                for line, one in zip(numbers, stored, strict=True)
            ]
        )
        points = (points[..., :2] * self.factor).astype(np.float32)
        off_grid.require_enough(points, where)
        samples = np.ascontiguousarray(samples, np.complex64)
        return Readouts(samples if self.coils > 1 else samples[0], points, where)


def open_volume(
    data: h5py.Dataset, head: np.ndarray, header: Any, units: str, path: Path
) -> OffGridVolume:
    """Reads the places of all samples.

    Args:
      data: the acquisitions.
      head: their headers, a structured array.
      header: the file's.
      units: of the trajectories; empty if they are to be recognised.
      path: the file.

    Raises:
      InputError: the trajectories cannot be used.
    """
    where = str(path)
    lines = mrd_lines.sort(head, where)
    numbers = np.flatnonzero(lines.image >= 0)
    coils = int(head["active_channels"][lines.number[numbers[0]]])
    _require_trajectories(head[lines.number[numbers]], header, where)
    _require_alike(lines, numbers, coils, where)
    stored = data.fields("traj")[()][lines.number[numbers]]
    points = np.stack(
        [
            _points(lines, line, one, where)
            for line, one in zip(numbers.tolist(), stored, strict=True)
        ]
    )
    points = off_grid.in_plane(points, where)
    sizes, matrix, depth = _sizes_of(header, where)
    largest = np.abs(points).max(axis=(0, 1))
    factor = trajectory_units.factor_of(largest, sizes, units, where)
    # Zero-filled images have finer pixels than were measured; coarser ones would leave
    # samples out.
    rows, columns = (
        max(n, 2 * int(np.ceil(reach - 1e-3)))
        for n, reach in zip(matrix, largest * factor, strict=True)
    )
    if max(rows, columns) > _MAX_SIZE:
        raise InputError(
            f"{where}: its trajectory needs a matrix of {rows} x {columns}, more than "
            f"{_MAX_SIZE}. Correct the header, or name the units with "
            "--trajectory_units."
        )
    voxel = sizes.field[0] / rows, sizes.field[1] / columns, depth
    shape = rows, columns
    grid = Grid(shape, shape, voxel, rows, columns, columns // 2)
    geometry, doubts = geometry_of(head, lines, grid)
    whitening = mrd_lines.whitening_of(data, head, lines, coils, where)
    first = points[lines.image[numbers] == 0] * factor
    kinds = ", ".join(f"{count} {name}" for name, count in lines.flags.items())
    return OffGridVolume(
        path=path,
        shape=shape,
        coils=coils,
        depth=lines.images,
        read=Reader(path, lines, coils, whitening, factor),
        measured=True,
        patient=text_of(header, "subjectInformation", "patientID"),
        geometry=geometry,
        doubts=doubts,
        described=(
            f"{coils} coils; "
            + ("no noise scan." if whitening is None else "a noise scan for them."),
            f"{first.shape[0]} readouts of {first.shape[1]} samples, "
            f"{trajectories.acceleration(first, shape):.3g} times undersampled; the "
            f"file's {largest.max():.4g} is {np.abs(first).max():.4g} in units of 1 / "
            "field of view.",
            f"acquisitions with flags: {kinds or 'none'}.",
        ),
    )


def _points(lines: Acquired, line: int, stored: np.ndarray, where: str) -> np.ndarray:
    """Returns the places (S, 2) or (S, 3) of a line's data, as stored."""
    length = lines.length[line]
    if stored.size not in (2 * length, 3 * length):
        raise InputError(
            f"{where}: acquisition {lines.number[line]} has {length} samples, but "
            f"{stored.size} numbers of its trajectory. Copy or convert the file again."
        )
    start = lines.start[line]
    return stored.reshape(length, -1)[start : start + lines.count[line]]


def _require_trajectories(head: np.ndarray, header: Any, where: str) -> None:
    """Raises InputError unless all lines have 2 coordinates, or all have 3."""
    trajectory = header.encoding[0].trajectory
    kind = getattr(trajectory, "value", trajectory)
    found = np.unique(head["trajectory_dimensions"])
    if found[0] == 0:
        raise InputError(
            f"{where}: its trajectory is {kind}, but not all acquisitions say where "
            "their samples lie (traj, trajectory_dimensions). Write the file with its "
            "trajectory."
        )
    if len(found) > 1 or found[0] not in (2, 3):
        raise InputError(
            f"{where}: its trajectory has {' and '.join(map(str, found))} coordinates "
            "a sample, but 2 or 3 are read. Copy or convert the file again."
        )


def _require_alike(
    lines: Acquired, numbers: np.ndarray, coils: int, where: str
) -> None:
    count = np.unique(lines.count[numbers])
    if len(count) > 1 or count[0] < 1:
        raise InputError(
            f"{where}: its readouts have {count[0]} to {count[-1]} samples, but all "
            "must have as many. Write readouts of each length to a file of their own."
        )
    readouts = np.bincount(lines.image[numbers])
    if coils * readouts.max() * count[0] > MAX_POINTS:
        raise InputError(
            f"{where}: {coils} coils of {readouts.max()} readouts of {count[0]} "
            f"samples are more than {MAX_POINTS}. The file is probably damaged."
        )


def _sizes_of(header: Any, where: str) -> tuple[Sizes, tuple[int, int], float]:
    """Returns sizes, the image's rows and columns, and a slice's thickness in mm."""
    encoded = header.encoding[0].encodedSpace
    recon = header.encoding[0].reconSpace
    try:
        matrix = recon.matrixSize.x, recon.matrixSize.y
        depth = recon.fieldOfView_mm.z / max(1, recon.matrixSize.z)
        if max(matrix) > _MAX_SIZE or not 0 < depth < np.inf:
            raise ValueError(
                f"a matrix of {matrix[0]} x {matrix[1]}, slices of {depth} mm"
            )
        sizes = Sizes.of(
            (encoded.matrixSize.x, encoded.fieldOfView_mm.x),
            matrix,
            (recon.fieldOfView_mm.x, recon.fieldOfView_mm.y),
        )
    except (ValueError, AttributeError) as error:
        raise InputError(
            f"{where}: its header does not tell the size of the image ({error}). Copy "
            "or convert the file again."
        ) from error
    return sizes, matrix, depth
