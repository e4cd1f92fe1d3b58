"""Attention maps of the K-Space Transformer (paper section 3.5, Fig. 4)."""

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from kst_jax import patches
from kst_jax.models.attention import attention_weights
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.tokens import Batch


@dataclasses.dataclass(frozen=True)
class Attention:
    """The attention of one token on the k-space grid (paper Fig. 4).

    Attributes:
      weights: softmax weights (S, K, H, W) of each layer and head; NaN where the grid
        has no key. The points of a patch have the weight of the patch.
      token: row and column of the token, or of the middle of its patch, on that grid.
    """

    weights: np.ndarray
    token: tuple[float, float]


def attention_on_grid(
    model: KSpaceTransformer,
    params: dict,
    batch: Batch,
    sampled: tuple[float, float] = (0.42, 0.4),
    unsampled: tuple[float, float] = (0.6, 0.66),
) -> dict[str, Attention]:
    """Maps the attention of a sampled and an unsampled point (paper Fig. 4).

    Args:
      model: the network.
      params: its parameters.
      batch: one slice that is not fully sampled.
      sampled: coordinates, row and column in [0, 1]; the sampled point nearest to them
        is shown in the encoder.
      unsampled: coordinates; the query nearest to them is shown in the high-resolution
        decoder.

    Returns:
      "encoder" on the image's grid, "hr_decoder" on the grid of its keys, which is the
      low-resolution grid if there is a low-resolution decoder.
    """
    size, patch = batch.grid, batch.patch
    keys, queries = (
        np.flatnonzero(patches.with_any(np.asarray(points[0]), patch))
        for points in (batch.mask, batch.asked)
    )
    places = patches.coordinates(size, patch)
    chosen = {
        "encoder": _nearest(places[keys], sampled),
        "hr_decoder": _nearest(places[queries], unsampled),
    }
    token_at = {
        "encoder": places[keys[chosen["encoder"]]],
        "hr_decoder": places[queries[chosen["hr_decoder"]]],
    }
    grids = {"encoder": (size, keys), "hr_decoder": (size, keys)}
    if model.config.has_lr_decoder:
        lr_size = model.config.lr_size
        count = math.prod(patches.grid_of(lr_size, patch))
        grids["hr_decoder"] = lr_size, np.arange(count)
    maps = attention_maps(model, params, batch, chosen)
    return {
        name: _on_grid(maps[name][:, 0], *grids[name], patch, token_at[name])
        for name in grids
    }


def _nearest(places_Nx2: np.ndarray, wanted: tuple[float, float]) -> int:
    return int(np.linalg.norm(places_Nx2 - np.asarray(wanted), axis=1).argmin())


def _on_grid(
    weights_SxKxL: jax.Array,
    grid: tuple[int, ...],
    keys: np.ndarray,
    patch: tuple[int, int],
    token_at: np.ndarray,
) -> Attention:
    """Puts weights over keys, some of them padding, on the grid of the keys."""
    layers, heads = weights_SxKxL.shape[:2]
    count = math.prod(patches.grid_of(grid, patch))
    on_grid = np.full((layers, heads, count, 1), np.nan, np.float32)
    on_grid[..., keys, 0] = np.asarray(weights_SxKxL)[..., : len(keys)]
    # Each point of a patch shows the patch's weight.
    points = patches.join(on_grid.repeat(math.prod(patch), axis=-1), grid, patch)
    row, column = token_at * (np.array(grid) - 1)
    return Attention(points[..., 0], (float(row), float(column)))


def attention_maps(
    model: KSpaceTransformer, params: dict, batch: Batch, chosen: Mapping[str, int]
) -> dict[str, jax.Array]:
    """Returns the attention of chosen tokens in every layer and head (paper Fig. 4).

    Args:
      model: the network.
      params: its parameters.
      batch: slices.
      chosen: stack of layers to token number: a sampled token for "encoder", a query
        for "hr_decoder".

    Returns:
      Stack of layers to softmax weights (S, B, K, L) over the tokens attended to.
    """
    state = _intermediates(model, params, batch)
    kinds = {"encoder": "self_attention", "hr_decoder": "cross_attention"}
    valid = {"encoder": batch.valid}
    if not model.config.has_lr_decoder:
        valid["hr_decoder"] = batch.valid
    maps = {}
    for name, number in chosen.items():
        (layers,) = state["intermediates"][name][kinds[name]]["query_key"]
        weights = [
            attention_weights(q[:, number : number + 1], k, valid.get(name))
            for q, k in zip(*layers, strict=True)
        ]
        maps[name] = jnp.stack(weights)[..., 0, :]
    return maps


@functools.partial(jax.jit, static_argnums=0)
def _intermediates(model: KSpaceTransformer, params: dict, batch: Batch) -> dict:
    """Returns what the layers keep for inspection."""
    variables = {"params": params}
    return model.apply(variables, batch, mutable=["intermediates"])[1]
