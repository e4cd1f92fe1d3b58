"""Counts the floating-point operations of a network (paper section 2.3)."""

import math
from typing import Any

import jax

from kst_jax import patches
from kst_jax.models.config import KSTConfig
from kst_jax.models.contract import Reconstructor
from kst_jax.patches import Layout
from kst_jax.readouts import ReadoutLayout
from kst_jax.tokens import Batch


def network_flops(
    config: KSTConfig,
    layout: Layout | ReadoutLayout,
    size: tuple[int, int],
    coils: int = 1,
) -> int:
    """Counts the K-Space Transformer's operations to reconstruct one slice.

    Each pair of multiplication and addition in matrix products and convolutions counts
    as two; nothing else counts. Attention takes the paper's O(ml + nl + l^2), with m
    queries, n sampled tokens and l low-resolution tokens, and n^2 in the encoder. With
    several coils every point is a query. Tokens may be patches.

    Args:
      config: the network.
      layout: of the tokens; masks count with the middle of its range.
      size: rows and columns of the image.
      coils: number of coils.
    """
    c, width = config, config.width
    layout = layout.middle
    pixels, points = math.prod(size), math.prod(c.patch)
    low = math.prod(patches.grid_of(c.lr_size, c.patch))
    sampled = layout.tokens(size)
    every = math.prod(patches.grid_of(size, c.patch))
    queries = layout.queries(size) if coils == 1 else every
    seen = points if points > 1 else 0

    def attention(queries: int, keys: int) -> int:
        return 4 * width * (queries * keys + width * (queries + keys))

    def mlp(tokens: int) -> int:
        return 4 * tokens * width * c.mlp

    def values(tokens: int, numbers: int) -> int:
        """Maps numbers to features, or back, through a hidden layer."""
        return 2 * tokens * width * (width + numbers)

    def refinement() -> int:
        features, taps = c.refinement_features, c.refinement_kernel**2
        inner = (c.refinement_layers - 1) * taps * features**2
        return 2 * pixels * (2 * taps * features + inner + 2 * features)

    memory = low if c.has_lr_decoder else sampled
    encoder_layer = attention(sampled, sampled) + mlp(sampled)
    lr_layer = attention(low, sampled) + attention(low, low) + mlp(low)
    lr_layer += values(low, 2 * points)
    embedding = values(queries, 2 * points + seen)
    hr_layer = mlp(queries) + values(queries, 2 * points)
    if c.refinement:
        hr_layer += refinement() + embedding
    if c.transformer:
        hr_layer += attention(queries, memory)
    if c.hybrid:
        rows, columns = patches.grid_of(size, c.patch)
        hr_layer += rows * attention(columns, columns) + mlp(every) + embedding
        # Values and what is sampled go in, values come out.
        hr_layer += values(every, 3 * points) + values(every, 2 * points)
    embedded = values(sampled, 2 * coils * points + seen)
    return (
        c.transformer * (embedded + c.encoder_layers * encoder_layer)
        + c.has_lr_decoder * c.lr_layers * lr_layer
        + embedding
        + c.hr_layers * hr_layer
    )


def traced_flops(model: Reconstructor, batch: Batch) -> int | None:
    """Counts a network's operations to reconstruct a batch, as XLA does.

    Returns None for a network with a loop, since XLA counts the body of a loop once.
    The K-Space Transformer loops over layers; `network_flops` counts it.
    """
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    apply = jax.jit(lambda params: model.reconstruct(params, batch).image)
    lowered = apply.lower(params)
    if "stablehlo.while" in lowered.as_text():
        return None
    cost: Any = lowered.cost_analysis()
    return int(cost["flops"])
