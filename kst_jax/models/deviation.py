"""Predicts how far off a reconstruction is, pixel by pixel."""

import jax
import jax.numpy as jnp
from flax import linen as nn

from kst_jax.fourier import magnitude
from kst_jax.models import convolution

# Bounds of the logarithm, so that a deviation and its inverse square stay finite.
_SMALLEST, _LARGEST = -7.0, 3.0


class Deviation(nn.Module):
    """Convolutions that predict the standard deviation of an image's magnitude.

    They see the magnitude of the image, and how far other images of the slice are from
    it: the zero-filled one, and those of the network's layers, since pixels that the
    layers still change are uncertain. No gradient of theirs reaches the image, so it is
    trained as without them (Stirn et al., AISTATS 2023, call such a network faithful);
    only `train.clip_norm`, which counts all gradients, can tell the difference.

    Attributes:
      features: channels of the hidden layers.
      layers: hidden layers.
    """

    features: int = 32
    layers: int = 4

    @nn.compact
    def __call__(
        self, image_BxHxWx2: jax.Array, others_SxBxHxWx2: jax.Array
    ) -> jax.Array:
        """Returns standard deviations (B, H, W), in the units of the image."""
        seen = jnp.concatenate(
            [image_BxHxWx2[None], others_SxBxHxWx2 - image_BxHxWx2[None]]
        )
        x = jnp.moveaxis(magnitude(jax.lax.stop_gradient(seen)), 0, -1)
        # Differences are small, and span several orders of magnitude.
        x = jnp.log(x + jnp.exp(_SMALLEST))
        for _ in range(self.layers):
            x = nn.relu(convolution.conv(self.features, 3, jnp.float32)(x))
        logarithm = convolution.conv(1, 1, jnp.float32, name="logarithm")(x)[..., 0]
        return jnp.exp(jnp.clip(logarithm, _SMALLEST, _LARGEST))
