"""Patches of k-space: neighbouring points that form one token or one query.

A patch of (1, 1) is a point, as published. Attention costs the square of the number of
tokens, so patches of p points cost p^2 times less of it (not in the paper; vision
transformers do so with pixels). Where a patch does not divide the grid, the last
patches reach beyond it, and their points there count as not sampled.

Functions take arrays of NumPy and of JAX.
"""

import dataclasses
import functools
import math
from typing import Any

import numpy as np

Shape = tuple[int, ...]


def grid_of(shape: Shape, patch: Shape) -> tuple[int, int]:
    """Returns the rows and columns of patches that cover a grid (H, W)."""
    rows, columns = (-(-n // p) for n, p in zip(shape, patch, strict=True))
    return rows, columns


def split(points: Any, patch: Shape) -> Any:
    """Groups the points of a grid into patches.

    Args:
      points: (..., H, W, C).
      patch: rows and columns (p, q) of a patch.

    Returns:
      (..., P, p * q * C): patches in row-major order, the points of each in row-major
      order too; zero beyond the grid.
    """
    x = _grouped(points, patch).swapaxes(-4, -3)
    *lead, rows, columns, p, q, channels = x.shape
    return x.reshape(*lead, rows * columns, p * q * channels)


def chosen(points: np.ndarray, number_N: np.ndarray, patch: Shape) -> np.ndarray:
    """Returns some rows of `split`, (N, p * q * C), of points (H, W, C)."""
    x = _grouped(points, patch).swapaxes(-4, -3)
    row_N, column_N = np.divmod(number_N, x.shape[1])
    return x[row_N, column_N].reshape(len(number_N), -1)


def _grouped(points: Any, patch: Shape) -> Any:
    """Views points (..., H, W, C) as (..., rows, p, columns, q, C), padded by zeros."""
    *lead, height, width, channels = points.shape
    (rows, columns), (p, q) = grid_of((height, width), patch), patch
    if (rows * p, columns * q) != (height, width):
        beyond = [(0, rows * p - height), (0, columns * q - width), (0, 0)]
        xp = points.__array_namespace__()
        points = xp.pad(points, [(0, 0)] * len(lead) + beyond)
    return points.reshape(*lead, rows, p, columns, q, channels)


def join(values: Any, shape: Shape, patch: Shape) -> Any:
    """Undoes `split`: patches (..., P, p * q * C) to the points (..., H, W, C)."""
    (rows, columns), (p, q) = grid_of(shape, patch), patch
    lead, channels = values.shape[:-2], values.shape[-1] // (p * q)
    x = values.reshape(*lead, rows, columns, p, q, channels).swapaxes(-4, -3)
    x = x.reshape(*lead, rows * p, columns * q, channels)
    return x[..., : shape[0], : shape[1], :]


def within(points: Any, patch: Shape) -> Any:
    """Returns which points (..., P, p * q) of each patch a mask (..., H, W) has."""
    return split(points[..., None], patch)


def with_any(points: Any, patch: Shape) -> Any:
    """Returns which patches (..., P) have any point of a mask (..., H, W)."""
    found = _grouped(points[..., None], patch).any((-4, -2, -1))
    return found.reshape(*found.shape[:-2], -1)


@functools.lru_cache
def coordinates(shape: Shape, patch: Shape = (1, 1)) -> np.ndarray:
    """Returns the coordinates (P, 2) of the middle of each patch, row-major, float32.

    The array is kept for the next call, and cannot be written to.

    Coordinates of the points span [0, 1] on each axis, both ends included, for any grid
    (paper sections 2.2 and 2.3). The middle of a patch that reaches beyond the grid may
    be above 1.
    """
    axes = []
    for points, count, p in zip(shape, grid_of(shape, patch), patch, strict=True):
        spacing = 1 / max(points - 1, 1)
        first, last = (spacing * (p - 1) / 2 + spacing * p * n for n in (0, count - 1))
        axes.append(np.linspace(first, last, count, dtype=np.float32))
    places = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, 2)
    places.flags.writeable = False
    return places


@dataclasses.dataclass(frozen=True)
class Layout:
    """How many tokens and queries the masks of a setting need, so shapes are static.

    Attributes:
      least: smallest number of sampled points of any mask.
      most: largest number.
      lines: whether every mask samples whole columns.
      patch: rows and columns of a patch.
    """

    least: int
    most: int
    lines: bool = False
    patch: tuple[int, int] = (1, 1)

    @classmethod
    def of(cls, *masks: np.ndarray, patch: tuple[int, int] = (1, 1)) -> "Layout":
        """Returns the layout that serves these masks (H, W)."""
        counts = [int(mask.sum()) for mask in masks]
        return cls(min(counts), max(counts), all(map(samples_lines, masks)), patch)

    @property
    def middle(self) -> "Layout":
        """The layout of masks with a number of points in the middle of the range."""
        points = round((self.least + self.most) / 2)
        return dataclasses.replace(self, least=points, most=points)

    @property
    def exact(self) -> bool:
        """Whether every mask has the same number of tokens."""
        whole = self.patch == (1, 1) or (self.lines and self.patch[1] == 1)
        return whole and self.least == self.most

    def tokens(self, shape: Shape) -> int:
        """Returns the number of tokens that suffices for masks of a shape (H, W)."""
        return self._patches_with(self.most, shape)

    def queries(self, shape: Shape) -> int:
        """Returns the number of queries that suffices for masks of a shape (H, W)."""
        return self._patches_with(math.prod(shape) - self.least, shape)

    def _patches_with(self, points: int, shape: Shape) -> int:
        """Returns the largest number of patches that hold so many points."""
        rows, columns = grid_of(shape, self.patch)
        if self.lines:
            return rows * min(columns, points // shape[0])
        return min(rows * columns, points)


def samples_lines(mask: np.ndarray) -> bool:
    """Whether a mask (H, W) samples whole columns."""
    return bool((mask == mask[:1]).all())
