"""Masked k-space as tokens, the input of a reconstruction network.

Sampled points become tokens (a value and a coordinate); unsampled points become queries
(a place on the grid to fill). All shapes are static, so one compiled program serves
every mask: if the number of points varies between a setting's masks, tokens are padded
and `valid` marks the real ones (paper sections 2.2 and 2.3).

A token or a query may also be a patch of V neighbouring points (`kst_jax.patches`). A
patch is a token if any of its points is sampled, and a query if any is not.
"""

import math
from collections.abc import Sequence
from typing import Any

import flax.struct
import jax
import jax.numpy as jnp
import numpy as np

from kst_jax import patches
from kst_jax.acquisition import Acquisition
from kst_jax.errors import InputError
from kst_jax.fourier import fft2c
from kst_jax.non_cartesian import NonCartesian
from kst_jax.patches import Layout


@flax.struct.dataclass
class Batch:
    """Undersampled slices, as tokens and on the grid; the same for every model.

    Attributes:
      value: measured values (B, N, 2 V) of the tokens, zero where a patch is not
        sampled; (B, N, 2 C V) of C coils.
      position: coordinates (B, N, 2), row then column, in [0, 1].
      valid: (B, N), False for padding; None if every token is real.
      query: flat indices (B, M) of the patches to predict in row-major order: those
        with an unsampled point, or all of them if there are maps, since no coil
        measures the spectrum of the combined image. Padding repeats the last patch of
        the grid, and its result is never read.
      kspace: measured k-space (B, H, W, 2), zero where not sampled; (B, C, H, W, 2) of
        C coils if there are maps. Off the grid it is the samples, (B, N, 2) or
        (B, C, N, 2).
      mask: (B, H, W), True where sampled; False everywhere off the grid.
      image: fully sampled image (B, H, W, 2), the target; None if unknown.
      empty: (B, H, W), True where the scanner measured nothing because k-space is taken
        to be zero there: neither tokens nor queries. None if there is no such place.
      seen: (B, N, V), True where a point of a token's patch is sampled; None if tokens
        are points.
      maps: sensitivity maps (B, C, H, W, 2); None for one coil that sees the image.
      trajectory: places (B, N, 2) of samples off the grid, in units of 1 / field of
        view; None on the grid.
      density: weights (B, N) that compensate for the density of these samples.
      peak: largest magnitude (B,) of the target's volume, in the units of the image;
        None if unknown.
      held_out: (B, H, W) weights of the errors at measured points that the network does
        not see and is compared with; zero at other points. None with targets.
      held_kspace: measured values at these points, zero elsewhere, in the shape of
        `kspace`; None with targets.
      field: rows and columns in the middle of the image that count in losses and
        scores; None if all do. It is not an array, so each field has its own program.
      patch: rows and columns of the patches; not an array either.
    """

    value: jax.Array
    position: jax.Array
    valid: jax.Array | None
    query: jax.Array
    kspace: jax.Array
    mask: jax.Array
    image: jax.Array | None = None
    empty: jax.Array | None = None
    seen: jax.Array | None = None
    maps: jax.Array | None = None
    trajectory: jax.Array | None = None
    density: jax.Array | None = None
    peak: jax.Array | None = None
    held_out: jax.Array | None = None
    held_kspace: jax.Array | None = None
    field: tuple[int, int] | None = flax.struct.field(pytree_node=False, default=None)
    patch: tuple[int, int] = flax.struct.field(pytree_node=False, default=(1, 1))

    @property
    def acquisition(self) -> Acquisition | NonCartesian:
        """The forward model that the slices were sampled by."""
        if self.trajectory is None:
            return self.cartesian
        assert self.density is not None
        return NonCartesian.on(self.trajectory, self.density, self.grid, self.maps)

    @property
    def cartesian(self) -> Acquisition:
        """The forward model of slices that were sampled on the grid."""
        return Acquisition(self.known, self.maps)

    @property
    def known(self) -> jax.Array:
        """The points (B, H, W) of the grid that are measured, or known to be empty."""
        return self.mask if self.empty is None else self.mask | self.empty

    @property
    def asked(self) -> jax.Array:
        """The points (B, H, W) to predict."""
        if self.maps is None:
            return ~self.known
        return jnp.ones_like(self.mask)

    @property
    def zero_filled_spectrum(self) -> jax.Array:
        """Spectrum (B, H, W, 2) of the zero-filled image, coils combined."""
        if self.maps is None and self.trajectory is None:
            return self.kspace
        return fft2c(self.acquisition.adjoint(self.kspace))

    @property
    def grid(self) -> tuple[int, int]:
        """Rows and columns of the images to reconstruct."""
        rows, columns = self.mask.shape[1:]
        return rows, columns

    def in_field(self, image: jax.Array) -> jax.Array:
        """Crops images (..., H, W, 2) of the grid to the field that counts."""
        if self.field is None:
            return image
        (top, rows), (left, columns) = (
            ((n - m) // 2, m) for n, m in zip(self.grid, self.field, strict=True)
        )
        return image[..., top : top + rows, left : left + columns, :]

    @property
    def target(self) -> jax.Array:
        """The image (B, H, W, 2); the batch must have one."""
        assert self.image is not None
        return self.image


def tokenise(
    kspace: np.ndarray,
    mask: np.ndarray,
    layout: Layout | None = None,
    empty: np.ndarray | None = None,
) -> dict[str, np.ndarray]:
    """Turns one slice into tokens and queries, on the host.

    Args:
      kspace: k-space (H, W, 2), or (C, H, W, 2) of several coils; unsampled values are
        ignored.
      mask: (H, W), True where sampled.
      layout: numbers to which tokens and queries are padded, and the patch; by default
        those of this mask, and points. Several coils make every patch a query.
      empty: (H, W), True where k-space is known to be zero without a measurement; such
        points of the mask do not count as sampled.

    Returns:
      The fields of `Batch` without the batch axis, the image and its field; `valid` is
      absent if every mask has the same number of tokens, `empty` if it is None, `seen`
      if tokens are points.

    Raises:
      InputError: the k-space has another shape, or the mask is not bool, has no sampled
        point, has the wrong shape, or has a number of points outside the layout's.
    """
    _require_slice(kspace, mask)
    layout = layout or Layout.of(mask)
    patch, most = layout.patch, layout.tokens(mask.shape)
    asked = ~mask if empty is None else ~(mask | empty)
    mask = mask if empty is None else mask & ~empty
    sampled = np.flatnonzero(patches.with_any(mask, patch))
    query = np.flatnonzero(patches.with_any(asked, patch)).astype(np.int32)
    most_queries = layout.queries(mask.shape)
    total = math.prod(patches.grid_of(mask.shape, patch))
    if sampled.size == 0:
        raise InputError("the mask samples no point; lower the acceleration")
    if sampled.size > most or query.size > most_queries:
        raise InputError(
            f"the mask samples {mask.sum()} points, outside its setting's range of "
            f"{layout.least} to {layout.most}; use masks of a single setting together"
        )
    if kspace.ndim == 4:
        query = np.arange(total, dtype=np.int32)
        most_queries = total
    # NumPy moves pairs of numbers several times faster as complex ones.
    points = np.ascontiguousarray(kspace, np.float32).view(np.complex64)[..., 0]
    points = np.where(mask, points, np.complex64(0))
    # A token has the values of all coils.
    coils = points[..., None] if points.ndim == 2 else np.moveaxis(points, 0, -1)
    value = patches.chosen(coils, sampled, patch).view(np.float32)
    tokens = {
        "value": _pad(value, most),
        "position": _pad(patches.coordinates(mask.shape, patch)[sampled], most),
        "query": _pad(query, most_queries, total - 1),
        "kspace": points[..., None].view(np.float32),
        "mask": mask,
    }
    if not layout.exact or empty is not None:
        tokens["valid"] = np.arange(most) < sampled.size
    if patch != (1, 1):
        seen = patches.chosen(mask[..., None], sampled, patch)
        tokens["seen"] = _pad(seen, most)
    if empty is not None:
        tokens["empty"] = empty
    return tokens


def _require_slice(kspace: np.ndarray, mask: np.ndarray) -> None:
    """Raises InputError unless k-space and mask have types and shapes that fit."""
    if kspace.ndim not in (3, 4) or kspace.shape[-1] != 2:
        raise InputError(
            f"k-space is {kspace.shape}, {kspace.dtype}; give its real and imaginary "
            "parts as (H, W, 2): np.stack([k.real, k.imag], -1)"
        )
    if mask.dtype != bool:
        raise InputError(
            f"the mask is {mask.dtype}; give a bool mask, True where sampled, such as "
            "mask > 0"
        )
    if mask.shape != kspace.shape[-3:-1]:
        raise InputError(
            f"mask {mask.shape} does not fit the k-space grid {kspace.shape[-3:-1]}; "
            "draw it for the data's size (data.size)"
        )


def batch_of(
    slices: Sequence[dict[str, np.ndarray]],
    field: tuple[int, int] | None = None,
    patch: tuple[int, int] = (1, 1),
) -> Batch:
    """Stacks the dictionaries of `tokenise` (with or without an image) into a Batch."""
    stacked: dict[str, Any] = {
        name: np.stack([s[name] for s in slices]) for name in slices[0]
    }
    return Batch(**{"valid": None, "field": field, "patch": patch, **stacked})


def regrid(
    kspace: np.ndarray,
    mask: np.ndarray,
    grid: tuple[int, ...],
    patch: tuple[int, int] = (1, 1),
) -> dict[str, np.ndarray]:
    """Turns one slice into tokens, with queries on another grid.

    Queries are coordinates, so they may have any density (paper section 2.3): the
    tokens stay, and the queries are the points of `grid` over [0, 1] x [0, 1]. A point
    of the new grid that coincides with a sampled one keeps the measured value.

    Args:
      kspace: k-space (H, W, 2).
      mask: (H, W), True where sampled.
      grid: rows and columns of the grid to reconstruct.
      patch: rows and columns of a patch, on either grid.

    Returns:
      The fields of `Batch` as `tokenise` returns them; `kspace`, `mask` and `query` are
      on the new grid.

    Raises:
      InputError: as `tokenise`.
    """
    slice_tokens = tokenise(kspace, mask, Layout.of(mask, patch=patch))
    rows, columns = (
        _coinciding(old, new) for old, new in zip(mask.shape, grid, strict=True)
    )
    on_both = (rows[:, None] >= 0) & (columns[None, :] >= 0)
    new_mask = on_both & mask[rows[:, None], columns[None, :]]
    new_kspace = np.where(
        new_mask[..., None], kspace[rows[:, None], columns[None, :]], 0
    )
    return slice_tokens | {
        "query": np.flatnonzero(patches.with_any(~new_mask, patch)).astype(np.int32),
        "kspace": new_kspace.astype(np.float32),
        "mask": new_mask,
    }


def _coinciding(old: int, new: int) -> np.ndarray:
    """Maps each of `new` coordinates to the index of its equal in `old`, or to -1."""
    number = np.arange(new)
    index, rest = np.divmod(number * (old - 1), max(new - 1, 1))
    # A grid of one point has only the coordinate 0.
    return np.where((rest == 0) & ((old > 1) | (number == 0)), index, -1)


def _pad(x: np.ndarray, length: int, value: int = 0) -> np.ndarray:
    padded = np.full((length, *x.shape[1:]), value, x.dtype)
    padded[: len(x)] = x
    return padded


def query_order(batch: Batch) -> jax.Array:
    """Returns the number of the query that fills each patch of the grid, (B, P).

    Queries are in row-major order, so a running count numbers them; the number is
    meaningless at patches that no query asks for.
    """
    asked = patches.with_any(batch.asked, batch.patch)
    return jnp.maximum(jnp.cumsum(asked, axis=1) - 1, 0)


def fill(
    value_BxMxV2: jax.Array,
    order: jax.Array,
    kspace: jax.Array,
    acquisition: Acquisition | NonCartesian,
    patch: tuple[int, int] = (1, 1),
) -> jax.Array:
    """Completes a spectrum (B, H, W, 2) of queries' values by the measured ones.

    `kspace` is that, or off the grid what `NonCartesian.measured` makes of it.
    """
    # Gathers by number: a scatter by index would run serially on a CPU.
    grid = jnp.take_along_axis(value_BxMxV2, order[..., None], axis=1)
    spectrum = patches.join(grid, acquisition.shape, patch)
    return acquisition.completed(spectrum, kspace)


def at_queries(
    points: jax.Array, query_BxM: jax.Array, patch: tuple[int, int] = (1, 1)
) -> jax.Array:
    """Reads what the points (B, H, W, C) of a grid hold at the queries, (B, M, V C)."""
    return jnp.take_along_axis(
        patches.split(points, patch), query_BxM[..., None], axis=1
    )
