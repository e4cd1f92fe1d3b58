"""D5C5: a cascade of small convolutional networks, each followed by data consistency.

J. Schlemper, J. Caballero, J. V. Hajnal, A. Price and D. Rueckert, "A deep cascade of
convolutional neural networks for dynamic MR image reconstruction" (IEEE TMI 2018, arXiv
1704.02422): five cascades of five convolutions.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from kst_jax.models.config import ModelConfig, require_odd, require_positive
from kst_jax.models.contract import Reconstruction, Reconstructor, finished
from kst_jax.models.convolution import conv
from kst_jax.tokens import Batch


@dataclasses.dataclass(frozen=True)
class D5C5Config(ModelConfig):
    """Sizes of D5C5.

    Attributes:
      cascades: networks in sequence, each with its own weights.
      layers: convolutions in each network, with ReLU between them.
      features: channels of the convolutions; by default the original's 64 (565,770
        parameters). The K-Space Transformer's paper does not say how many it uses.
      kernel: size of each convolution.
    """

    takes_coils = True

    name: str = "d5c5"
    cascades: int = 5
    layers: int = 5
    features: int = 64
    kernel: int = 3

    def __post_init__(self):
        """Raises InputError if no network can have these sizes."""
        super().__post_init__()
        require_positive(self)
        require_odd(self, "kernel")


class Cascade(nn.Module):
    """Convolutions that predict a correction to an image."""

    config: D5C5Config

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """(B, H, W, 2) to (B, H, W, 2), float32."""
        c, x = self.config, image
        he = {"kernel_init": nn.initializers.he_normal()}
        for _ in range(c.layers - 1):
            x = nn.relu(conv(c.features, c.kernel, jnp.dtype(c.dtype), **he)(x))
        return image + conv(2, c.kernel, jnp.float32, **he)(x)


class D5C5(Reconstructor):
    """Reconstructs slices and keeps the measured values."""

    config: D5C5Config

    title = "D5C5"

    @nn.compact
    def __call__(self, batch: Batch, stage: str = "RM") -> Reconstruction:
        """Reconstructs a batch; there is only one stage."""
        del stage
        image = batch.cartesian.adjoint(batch.kspace)
        for _ in range(self.config.cascades):
            image = Cascade(self.config)(image)
            image = batch.cartesian.consistent(image, batch.kspace)
        return finished(image)
