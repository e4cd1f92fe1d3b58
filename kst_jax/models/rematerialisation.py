"""What a training step keeps of the forward pass, and what it computes again.

Memory of a step is mostly the activations that its gradient needs. Fewer of them kept
means more computed a second time; the result is the same.
"""

from collections.abc import Callable
from functools import partial

import jax
from flax import linen as nn
from jax.ad_checkpoint import checkpoint_name

BLOCK = "block"

_remat = partial(nn.remat, prevent_cse=False)  # layers run in a loop, where it cannot

# How each policy wraps a layer.
POLICIES: dict[str, Callable] = {
    # Everything: most memory, nothing computed twice.
    "none": lambda layer: layer,
    # What attention, MLP and each convolution gave, not what is within.
    "blocks": partial(
        _remat, policy=jax.checkpoint_policies.save_only_these_names(BLOCK)
    ),
    # The input of each layer alone: least memory, a whole forward pass more.
    "layers": _remat,
}


def keep(x: jax.Array) -> jax.Array:
    """Marks a block's output, which policy "blocks" keeps."""
    return checkpoint_name(x, BLOCK)
