"""Which parts of the forward pass a training step keeps, and which it recomputes.

A step needs memory mostly for the activations that its gradient uses. Keeping fewer of
them means recomputing more; the result is the same.
"""

from collections.abc import Callable
from functools import partial

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

BLOCK = "block"

_remat = partial(nn.remat, prevent_cse=False)  # CSE stops at the loop over layers

# How each policy wraps a layer.
POLICIES: dict[str, Callable] = {
    # Keeps everything: most memory, nothing computed twice.
    "none": lambda layer: layer,
    # Keeps the outputs of attention, MLP and each convolution, but nothing inside.
    "blocks": partial(
        _remat, policy=jax.checkpoint_policies.save_only_these_names(BLOCK)
    ),
    # Keeps only each layer's input: least memory, a whole extra forward pass.
    "layers": _remat,
}


def keep(x: jax.Array) -> jax.Array:
    """Marks a block's output for policy "blocks" to keep."""
    return checkpoint_name(x, BLOCK)
