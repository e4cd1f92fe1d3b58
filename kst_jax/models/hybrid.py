"""Attention along the columns of k-space, in hybrid space (not in the paper).

In hybrid space the readout is an image's axis and the other one is k-space's. Under
line sampling each row of it is a problem of its own: fill the columns that were not
measured. So tokens need to attend only to those of their row, which costs W^2 a row
instead of (H W)^2 an image, and reaches as far as aliasing does. With patches a row is
a band of neighbouring rows.
"""

import math

import jax
import jax.numpy as jnp
from flax import linen as nn

from kst_jax import patches
from kst_jax.fourier import fft_readout, ifft_readout
from kst_jax.models import blocks

# The change of a value is predicted in units of its expected magnitude times this.
_STEP = 0.3


class HybridAttention(nn.Module):
    """Predicts a change of the spectrum by attention among the columns of each row."""

    patch: tuple[int, int]
    width: int
    heads: int
    mlp: int
    dtype: jnp.dtype
    implementation: str

    @nn.compact
    def __call__(
        self, spectrum: jax.Array, kspace: jax.Array, mask_BxHxW: jax.Array
    ) -> jax.Array:
        """Returns the change of the spectrum, (B, H, W, 2).

        Args:
          spectrum: (B, H, W, 2), completed by the measured values.
          kspace: measured k-space (B, H, W, 2), or (B, C, H, W, 2) of several coils.
          mask_BxHxW: True where sampled.
        """
        grid = spectrum.shape[1:3]
        rows, columns = patches.grid_of(grid, self.patch)
        size = expected_magnitude(kspace, mask_BxHxW)[..., None]
        # How much of each column is sampled: all or nothing under line sampling.
        seen = jnp.broadcast_to(
            mask_BxHxW.mean(1, keepdims=True)[..., None], (*mask_BxHxW.shape, 1)
        )
        x = jnp.concatenate([ifft_readout(spectrum) / size, seen], axis=-1)
        x = patches.split(x, self.patch)
        x = blocks.Perceptron(self.width, self.width, self.dtype, name="embed")(x)
        position = jnp.asarray(patches.coordinates(grid, self.patch))
        x += blocks.positional_encoding(position[None], self.width)
        x_RxWxD = x.reshape(-1, columns, self.width)
        attend = blocks.AttentionBlock(
            self.heads, self.dtype, self.implementation, name="self_attention"
        )
        x_RxWxD = attend(x_RxWxD, x_RxWxD)
        x_RxWxD = blocks.MLPBlock(self.mlp, self.dtype, name="mlp")(x_RxWxD)
        points = math.prod(self.patch)
        change = blocks.SpectrumHead(points, self.dtype, name="head")(x_RxWxD)
        change = change.reshape(-1, rows * columns, 2 * points)
        return fft_readout(_STEP * size * patches.join(change, grid, self.patch))


def expected_magnitude(kspace: jax.Array, mask_BxHxW: jax.Array) -> jax.Array:
    """Returns the expected magnitude (B, 1, W) of a slice's spectrum in each column.

    The spectra of images fall as 1 / (distance from the centre + 1), nearly; the
    measured values tell the factor.
    """
    width = mask_BxHxW.shape[-1]
    distance_1x1xW = jnp.abs(jnp.arange(width) - width // 2)[None, None] + 1.0
    energy = jnp.square(kspace).sum(-1)
    if energy.ndim == 4:  # several coils
        energy = energy.sum(1)
    energy = jnp.where(mask_BxHxW, energy * distance_1x1xW**2, 0).sum((1, 2))
    mean = energy / jnp.maximum(mask_BxHxW.sum((1, 2)), 1)
    # The small constant keeps an empty slice finite.
    return jnp.sqrt(mean + 1e-12)[:, None, None] / distance_1x1xW
