"""BART's arrays: a .cfl of values with a .hdr of dimensions beside it."""

import dataclasses
import math
from pathlib import Path
from typing import ClassVar

import numpy as np

from kst_jax.data.readers.fastmri import (
    MAX_POINTS,
    MAX_SLICES,
    require_transformable,
    to_image,
)
from kst_jax.data.readers.nifti import beside
from kst_jax.data.samples import Sample
from kst_jax.errors import InputError
from kst_jax.programs import files

# Places of the dimensions that a scan may have.
_READOUT, _PHASE, _COILS, _SLICES = 0, 1, 3, 13
_NAMES = {
    2: "the second phase encoding",
    4: "sets of maps",
    5: "echoes",
    6: "coefficients",
    10: "time",
    11: "a second time",
    14: "averages",
}
_MAX_HEADER = 2**16


@dataclasses.dataclass(frozen=True)
class BartVolume:
    """One array of 2D Cartesian k-space.

    The file does not say whose slices it holds or how they were made. So one file
    counts as one subject, and its k-space as simulated (`measured` is False), which
    keeps results from claiming too much.

    Attributes:
      path: the .cfl; it is mapped into memory again for every slice.
      dimensions: sizes of the array, the first changing fastest.
    """

    path: Path
    dimensions: tuple[int, ...]
    doubts: ClassVar[tuple[str, ...]] = ()
    measured: ClassVar[bool] = False
    undersampled: ClassVar[bool] = False
    patient: ClassVar[str] = ""  # the file names nobody
    geometry: ClassVar[None] = None
    pixel: ClassVar[None] = None
    acquisition: ClassVar[str] = ""

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the k-space."""
        return self.dimensions[_READOUT], self.dimensions[_PHASE]

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the images: those of the k-space."""
        return self.shape

    @property
    def coils(self) -> int:
        """Number of receiver coils."""
        return self.dimensions[_COILS]

    @property
    def depth(self) -> int:
        """Number of slices."""
        return self.dimensions[_SLICES]

    @property
    def slices(self) -> range:
        """Numbers of the slices that can be read."""
        return range(self.depth)

    def sampled(self, index: int) -> None:
        """The file does not say which points were measured."""

    def read(self, index: int) -> np.ndarray:
        """Reads one slice as a complex64 image, in the units of its k-space.

        It is (H, W), or (C, H, W) of several coils.
        """
        return to_image(self._kspace(index), f"{self.path}: slice {index}")

    def sample(self, index: int) -> Sample:
        """Reads one slice's k-space, which is zero where it was not measured."""
        kspace, where = self._kspace(index), f"{self.path}: slice {index}"
        require_transformable(kspace, where)
        return Sample(kspace=kspace, mask=None, where=where)

    def _kspace(self, index: int) -> np.ndarray:
        rows, columns = self.shape
        array = np.memmap(
            self.path, "<c8", "r", shape=(self.depth, self.coils, columns, rows)
        )
        kspace = np.ascontiguousarray(array[index].swapaxes(-2, -1))
        return kspace if self.coils > 1 else kspace[0]


def open_volume(path: Path) -> BartVolume:
    """Reads a pair's header.

    Args:
      path: the .cfl.

    Raises:
      InputError: the header is missing or damaged, has dimensions that no stack of 2D
        slices has, or does not fit the values.
    """
    dimensions = dimensions_of(path)
    _require_on_grid(path, dimensions)
    allowed = {_READOUT: "readout", _PHASE: "phase encoding", _COILS: "coils"}
    require_fit(path, dimensions, allowed | {_SLICES: "slices"})
    return BartVolume(path, dimensions)


def dimensions_of(path: Path) -> tuple[int, ...]:
    """Reads the sizes of the 16 dimensions of a pair, given its .cfl.

    Raises:
      InputError: the header is missing or damaged.
    """
    header = beside(path, ".hdr")
    if not header.exists():
        raise InputError(f"{path}: its header {header.name} is missing. Copy both.")
    files.require_ordinary(header)
    return _dimensions(header)


def require_fit(
    path: Path, dimensions: tuple[int, ...], allowed: dict[int, str]
) -> None:
    """Raises InputError for dimensions that cannot be read.

    Args:
      path: the .cfl.
      dimensions: sizes in its header.
      allowed: names of those that may be above 1.
    """
    header = beside(path, ".hdr")
    others = [
        f"{place} ({_NAMES.get(place, 'unknown here')}) is {size}"
        for place, size in enumerate(dimensions)
        if size != 1 and place not in allowed
    ]
    if others:
        *first, last = (f"{place} ({name})" for place, name in allowed.items())
        raise InputError(
            f"{header}: dimension {', dimension '.join(others)}, but only "
            f"{', '.join(first)} and {last} may be above 1. Cut the array with `bart "
            "slice`."
        )
    if math.prod(dimensions[:4]) > MAX_POINTS or dimensions[_SLICES] > MAX_SLICES:
        raise InputError(
            f"{header}: dimensions {dimensions} mean more than {MAX_POINTS} points a "
            f"slice or {MAX_SLICES} slices. The file is probably damaged."
        )
    wanted, size = 8 * math.prod(dimensions), path.stat().st_size
    if size != wanted:
        raise InputError(
            f"{path}: holds {size} bytes, but its header's dimensions need {wanted}. "
            "Copy both files again."
        )


def _require_on_grid(path: Path, dimensions: tuple[int, ...]) -> None:
    """Raises InputError for k-space off the grid, and for trajectories."""
    first, samples, readouts, coils = dimensions[:4]
    if first == 3 and readouts > 1 and coils == 1:
        raise InputError(
            f"{path}: has the dimensions of a trajectory, {readouts} readouts of "
            f"{samples} samples. Give it to kst-reconstruct as --trajectory={path}, "
            "with the file of its k-space."
        )
    if first == 1 and readouts > 1:
        raise InputError(
            f"{path}: has the dimensions of k-space off the grid, {readouts} readouts "
            f"of {samples} samples, {coils} coils. To reconstruct it, name its "
            "trajectory: kst-reconstruct ... --trajectory=FILE.cfl."
        )


def _dimensions(header: Path) -> tuple[int, ...]:
    """Reads the line after "# Dimensions"; missing dimensions are 1."""
    with header.open("rb") as file:
        lines = file.read(_MAX_HEADER).decode(errors="replace").splitlines()
    places = [n for n, line in enumerate(lines) if line.strip() == "# Dimensions"]
    words = (
        lines[places[0] + 1].split() if places and len(lines) > places[0] + 1 else []
    )
    # More digits than any size has would only take time.
    good = words and all(w.isascii() and w.isdigit() and len(w) < 10 for w in words)
    sizes = [int(word) for word in words] if good else []
    if not sizes or min(sizes) < 1:
        raise InputError(
            f"{header}: has no line of dimensions after '# Dimensions'. Copy the file "
            "again."
        )
    return (*sizes, *[1] * (16 - len(sizes)))
