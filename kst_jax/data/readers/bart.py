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
    header = beside(path, ".hdr")
    if not header.exists():
        raise InputError(f"{path}: its header {header.name} is missing. Copy both.")
    files.require_ordinary(header)
    dimensions = _dimensions(header)
    others = [
        f"{place} ({_NAMES.get(place, 'unknown here')}) is {size}"
        for place, size in enumerate(dimensions)
        if size != 1 and place not in (_READOUT, _PHASE, _COILS, _SLICES)
    ]
    if others:
        raise InputError(
            f"{header}: dimension {', dimension '.join(others)}, but only 0 (readout), "
            "1 (phase encoding), 3 (coils) and 13 (slices) may be above 1. Cut the "
            "array with `bart slice`."
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
    return BartVolume(path, dimensions)


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
