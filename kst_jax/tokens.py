"""Masked k-space as tokens: what a reconstruction network is given.

Sampled points become tokens (a value and a coordinate), unsampled points become queries
(a place on the grid to be filled). Everything has a static shape, so that one compiled
program serves every mask: where a setting's masks vary in their count, tokens are
padded and `valid` says which are real. Coordinates run over [0, 1] on each axis, both
ends included, whatever the grid (paper sections 2.2 and 2.3).
"""

from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kst_jax.errors import InputError
from kst_jax.fourier import data_consistency


@flax.struct.dataclass
class Batch:
    """Undersampled slices, as tokens and on the grid; the same for every model.

    Attributes:
      value: measured values (B, N, 2) of the tokens.
      position: coordinates (B, N, 2), row then column, in [0, 1].
      valid: (B, N), False for padding; None where every token is real.
      query: flat indices (B, M) of the unsampled grid points in row-major order;
        padding repeats the last point of the grid, and nothing reads its result.
      kspace: measured k-space (B, H, W, 2), zero where not sampled.
      mask: (B, H, W), True where sampled.
      image: fully sampled image (B, H, W, 2), the target; None where it is unknown.
    """

    value: jax.Array
    position: jax.Array
    valid: jax.Array | None
    query: jax.Array
    kspace: jax.Array
    mask: jax.Array
    image: jax.Array | None = None

    @property
    def target(self) -> jax.Array:
        """The image (B, H, W, 2), of a batch that has one."""
        assert self.image is not None
        return self.image


def coordinates(shape: tuple[int, ...]) -> np.ndarray:
    """Normalised coordinates (H * W, 2) of a grid (H, W), row-major, float32."""
    rows, columns = (np.linspace(0, 1, n, dtype=np.float32) for n in shape)
    return np.stack(np.meshgrid(rows, columns, indexing="ij"), -1).reshape(-1, 2)


def tokenise(
    kspace: np.ndarray, mask: np.ndarray, counts: tuple[int, int] | None = None
) -> dict[str, np.ndarray]:
    """Tokens and queries of one slice, on the host.

    Args:
      kspace: k-space (H, W, 2); unsampled values are ignored.
      mask: (H, W), True where sampled.
      counts: least and largest number of sampled points that any mask of the setting
        has, by default this mask's own. Tokens are padded to the largest, queries to
        H * W less the least.

    Returns:
      The fields of `Batch` without their batch axis and without the image; `valid` is
      left out where the counts are equal.

    Raises:
      InputError: k-space that is not (H, W, 2), a mask that is not bool, without a
        sampled point, of the wrong shape, or whose number of points is outside
        `counts`.
    """
    if kspace.ndim != 3 or kspace.shape[2] != 2:
        raise InputError(
            f"k-space is {kspace.shape} of {kspace.dtype}; give (H, W, 2), its real "
            "and imaginary parts: np.stack([k.real, k.imag], -1)"
        )
    if mask.dtype != bool:
        raise InputError(
            f"the mask is of {mask.dtype}; give one of bool, True where sampled, such "
            "as mask > 0"
        )
    if mask.shape != kspace.shape[:2]:
        raise InputError(
            f"mask {mask.shape} does not fit the k-space grid {kspace.shape[:2]}; "
            "draw it for the size of the data (data.size)"
        )
    sampled, query = np.flatnonzero(mask), np.flatnonzero(~mask)
    least, most = counts or (sampled.size, sampled.size)
    if sampled.size == 0:
        raise InputError("the mask samples no point; lower the acceleration")
    if not least <= sampled.size <= most:
        raise InputError(
            f"the mask samples {sampled.size} points, outside the {least} to {most} of "
            "its setting; use masks of one setting together"
        )
    tokens = {
        "value": _pad(kspace.reshape(-1, 2)[sampled], most),
        "position": _pad(coordinates(mask.shape)[sampled], most),
        "query": _pad(query.astype(np.int32), mask.size - least, mask.size - 1),
        "kspace": np.where(mask[..., None], kspace, 0).astype(np.float32),
        "mask": mask,
    }
    if least != most:
        tokens["valid"] = np.arange(most) < sampled.size
    return tokens


def batch_of(slices: Sequence[dict[str, np.ndarray]]) -> Batch:
    """Stacks the dictionaries of `tokenise` (with or without an image) into a Batch."""
    stacked: dict[str, Any] = {
        name: np.stack([s[name] for s in slices]) for name in slices[0]
    }
    return Batch(**{"valid": None, **stacked})


def regrid(kspace: np.ndarray, mask: np.ndarray, grid: tuple[int, ...]) -> dict:
    """Tokens of one slice with queries on another grid of the same coordinates.

    Queries are coordinates, so their density is free (paper section 2.3): the tokens
    stay, the queries are the points of `grid` over [0, 1] x [0, 1]. A point of the new
    grid that coincides with a sampled one keeps the measured value.

    Args:
      kspace: k-space (H, W, 2).
      mask: (H, W), True where sampled.
      grid: rows and columns of the grid to reconstruct.

    Returns:
      The fields of `Batch` as `tokenise` gives them; `kspace`, `mask` and `query` are
      on the new grid.

    Raises:
      InputError: as `tokenise`.
    """
    slice_tokens = tokenise(kspace, mask)
    rows, columns = (
        _coinciding(old, new) for old, new in zip(mask.shape, grid, strict=True)
    )
    on_both = (rows[:, None] >= 0) & (columns[None, :] >= 0)
    new_mask = on_both & mask[rows[:, None], columns[None, :]]
    new_kspace = np.where(
        new_mask[..., None], kspace[rows[:, None], columns[None, :]], 0
    )
    return slice_tokens | {
        "query": np.flatnonzero(~new_mask).astype(np.int32),
        "kspace": new_kspace.astype(np.float32),
        "mask": new_mask,
    }


def _coinciding(old: int, new: int) -> np.ndarray:
    """For each of `new` coordinates the index of the equal one of `old`, or -1."""
    number = np.arange(new)
    index, rest = np.divmod(number * (old - 1), max(new - 1, 1))
    # A grid of one point has but the coordinate 0.
    return np.where((rest == 0) & ((old > 1) | (number == 0)), index, -1)


def _pad(x: np.ndarray, length: int, value: int = 0) -> np.ndarray:
    width = [(0, length - len(x))] + [(0, 0)] * (x.ndim - 1)
    return np.pad(x, width, constant_values=value)


def query_order(mask_BxHxW: jax.Array) -> jax.Array:
    """For each grid point (B, H * W) the number of the query that fills it.

    Queries are in row-major order, so a running count finds them; at sampled points the
    number means nothing.
    """
    unsampled = ~mask_BxHxW.reshape(mask_BxHxW.shape[0], -1)
    return jnp.maximum(jnp.cumsum(unsampled, axis=1) - 1, 0)


def fill(
    value_BxMx2: jax.Array, order: jax.Array, kspace: jax.Array, mask: jax.Array
) -> jax.Array:
    """The spectrum (B, H, W, 2): values of the queries, measured ones where sampled."""
    # A gather by number, where a scatter by index would run serially on a CPU.
    grid = jnp.take_along_axis(value_BxMx2, order[..., None], axis=1)
    return data_consistency(grid.reshape(kspace.shape), kspace, mask)


def at_queries(spectrum: jax.Array, query_BxM: jax.Array) -> jax.Array:
    """Values (B, M, 2) of a spectrum (B, H, W, 2) at the queries."""
    flat = spectrum.reshape(spectrum.shape[0], -1, 2)
    return jnp.take_along_axis(flat, query_BxM[..., None], axis=1)
