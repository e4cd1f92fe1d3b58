"""Encoded and reconstructed sizes of an ISMRMRD scan."""

import dataclasses
from collections.abc import Sequence

import numpy as np

_MAX_SIZE = 2**14


@dataclasses.dataclass(frozen=True)
class Grid:
    """Encoded and reconstructed sizes.

    Attributes:
      encoded: rows (readout) and columns (phase encoding) of k-space as encoded.
      matrix: rows and columns of the reconstructed image.
      voxel: its voxel along rows, columns and slices, in mm.
      rows: rows of k-space after the readout's oversampling was removed.
      columns: columns that cover the encoded field of view at the image's resolution.
      centre: phase encoding step at the centre of k-space.
    """

    encoded: tuple[int, int]
    matrix: tuple[int, int]
    voxel: tuple[float, float, float]
    rows: int
    columns: int
    centre: int

    @classmethod
    def of(
        cls,
        sizes: Sequence[tuple[int, int, int]],
        fields: Sequence[tuple[float, float, float]],
        centre: int | None,
    ) -> "Grid":
        """Makes the grid of a header; raises ValueError for impossible sizes.

        Args:
          sizes: encoded and reconstructed matrix (x, y, z).
          fields: encoded and reconstructed field of view in mm.
          centre: phase encoding step at the centre of k-space; None if not told.
        """
        (x, y, _), (rows, columns, depth) = sizes
        encoded, recon = np.array(fields, float)
        if not all(0 < n <= _MAX_SIZE for n in (x, y, rows, columns)):
            raise ValueError(f"matrices of {x} x {y} and {rows} x {columns}")
        if not (np.isfinite(fields).all() and (np.array(fields) > 0).all()):
            raise ValueError(f"fields of view of {fields[0]} and {fields[1]} mm")
        shown = recon[:2] / encoded[:2]
        inner, wide = round(x * shown[0]), round(columns / shown[1])
        if not (0 < inner <= x and columns <= wide <= _MAX_SIZE):
            raise ValueError(f"an image of {fields[1]} mm from {fields[0]} mm")
        voxel = recon / (rows, columns, max(1, depth))
        return cls(
            encoded=(x, y),
            matrix=(rows, columns),
            voxel=tuple(voxel.tolist()),
            rows=inner,
            columns=wide,
            centre=y // 2 if centre is None else centre,
        )

    @property
    def shape(self) -> tuple[int, int]:
        """Rows and columns of the k-space that readers give."""
        return self.matrix[0], self.columns

    @property
    def oversampling(self) -> float:
        """How many times the readout is oversampled."""
        return self.encoded[0] / self.rows

    @property
    def measured(self) -> tuple[int, int] | None:
        """Columns that the scanner encodes, if k-space is wider; else None."""
        if self.columns <= self.encoded[1]:
            return None
        first = self.columns // 2 - self.encoded[1] // 2
        return first, first + self.encoded[1]

    def column_of(self, step: np.ndarray) -> np.ndarray:
        """Columns of phase encoding steps in the encoded k-space."""
        return step - self.centre + self.encoded[1] // 2

    def readout_places(self) -> np.ndarray:
        """For each row without oversampling, the row of the encoded k-space there."""
        away = np.arange(self.rows) - self.rows // 2
        places = self.encoded[0] // 2 + np.round(away * self.oversampling)
        return np.clip(places, 0, self.encoded[0] - 1).astype(int)

    def resized(self, array: np.ndarray, fill: int | None) -> np.ndarray:
        """Cuts or pads (..., rows, encoded columns) to `shape` about the centre.

        Args:
          array: k-space or its mask.
          fill: value beyond the array; None repeats the last row, and is False beyond
            the last column, which suits masks.
        """
        for axis, size in ((-2, self.shape[0]), (-1, self.shape[1])):
            count = array.shape[axis]
            places = np.arange(size) - size // 2 + count // 2
            inside = (places >= 0) & (places < count)
            array = np.take(array, np.clip(places, 0, count - 1), axis=axis)
            if fill is not None or axis == -1:
                shape = (-1, 1) if axis == -2 else (-1,)
                array = np.where(inside.reshape(shape), array, fill or 0)
        return array.astype(bool) if fill is None else array
