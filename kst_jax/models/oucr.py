"""OUCR: an over-complete and an under-complete recurrent branch, fused at the end.

P. Guo, J. M. J. Valanarasu, P. Wang, J. Zhou, S. Jiang and V. M. Patel, "Over-and-under
complete convolutional RNN for MRI reconstruction" (MICCAI 2021, arXiv 2106.08886).

Re-derived from the paper's description, not from its code. We chose the layers' widths
and where they resample so that there are about as many parameters as published (1.2
million).
"""

import dataclasses
import functools

import jax
import jax.numpy as jnp
from flax import linen as nn

from kst_jax.errors import InputError
from kst_jax.models.blocks import uniform_bias, uniform_kernel
from kst_jax.models.config import ModelConfig, require_positive
from kst_jax.models.contract import Reconstruction, Reconstructor, finished
from kst_jax.models.convolution import conv
from kst_jax.tokens import Batch


@dataclasses.dataclass(frozen=True)
class OUCRConfig(ModelConfig):
    """Sizes of OUCR.

    Attributes:
      iterations: how often each branch processes its image, with the same weights.
      features: channels at full resolution.
      over_levels: how often the over-complete branch doubles the resolution, with
        constant channels, so that kernels see less and less of the image.
      under_levels: how often the under-complete branch halves the resolution and
        doubles the channels.
      refinement_layers: convolutions of the module that fuses both branches, not
        counting the last.
    """

    takes_coils = True

    name: str = "oucr"
    iterations: int = 5
    features: int = 56
    over_levels: int = 1
    under_levels: int = 2
    refinement_layers: int = 4

    def __post_init__(self):
        """Raises InputError if no network can have these sizes."""
        super().__post_init__()
        require_positive(self)

    def require_size(self, size: tuple[int, int]) -> None:
        """Raises InputError if images cannot be halved that often."""
        unit = 2**self.under_levels
        if any(n % unit for n in size):
            raise InputError(
                f"data.size={size} does not fit model.under_levels="
                f"{self.under_levels}: rows and columns must be multiples of {unit}"
            )


class Branch(nn.Module):
    """One iteration of a recurrent encoder and decoder.

    Attributes:
      widths: channels at each level; the first level has the image's resolution.
      over: whether levels double the resolution; otherwise they halve it.
      dtype: precision of products.
    """

    widths: tuple[int, ...]
    over: bool
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self, image: jax.Array, hidden: jax.Array | None
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the new image (B, H, W, 2) and hidden state; the first is None."""
        there, back = (enlarge, halve) if self.over else (halve, enlarge)
        x = image
        for width in self.widths[:-1]:
            x = there(nn.relu(_conv(x, width, self.dtype)))
        x = _conv(x, self.widths[-1], self.dtype)
        # The first state is zero everywhere, so one pixel is enough.
        hidden = jnp.zeros_like(x[:, :1, :1]) if hidden is None else hidden
        hidden = nn.relu(x + _conv(hidden, self.widths[-1], self.dtype))
        x = hidden
        for width in self.widths[-2::-1]:
            x = nn.relu(_conv(back(x), width, self.dtype))
        return image + _conv(x, 2, jnp.float32), hidden


def _conv(x: jax.Array, features: int, dtype: jnp.dtype) -> jax.Array:
    """Applies a 3x3 convolution with PyTorch's initialisation.

    He initialisation, as in D5C5, would amplify the image in every iteration.
    """
    layer = conv(
        features,
        3,
        dtype,
        kernel_init=uniform_kernel,
        bias_init=uniform_bias(9 * x.shape[-1]),
    )
    return layer(x)


def enlarge(x: jax.Array) -> jax.Array:
    """Doubles rows and columns of (B, H, W, C), bilinearly."""
    B, H, W, C = x.shape
    return jax.image.resize(x, (B, 2 * H, 2 * W, C), "bilinear")


def halve(x: jax.Array) -> jax.Array:
    """Takes the maximum of each 2x2 pixels of (B, H, W, C)."""
    B, H, W, C = x.shape
    return x.reshape(B, H // 2, 2, W // 2, 2, C).max((2, 4))


class OUCR(Reconstructor):
    """Reconstructs slices and keeps the measured values."""

    config: OUCRConfig

    title = "OUCR"

    @nn.compact
    def __call__(self, batch: Batch, stage: str = "RM") -> Reconstruction:
        """Reconstructs a batch; there is only one stage."""
        del stage
        c, dtype = self.config, jnp.dtype(self.config.dtype)
        over = (c.features,) * (c.over_levels + 1)
        under = tuple(c.features << level for level in range(c.under_levels + 1))
        consistent = functools.partial(batch.cartesian.consistent, kspace=batch.kspace)
        images = []
        for name, widths in (("over", over), ("under", under)):
            branch = Branch(widths, name == "over", dtype, name=name)
            image, hidden = batch.cartesian.adjoint(batch.kspace), None
            for _ in range(c.iterations):
                image, hidden = branch(image, hidden)
                image = consistent(image)
            images.append(image)
        x = jnp.concatenate(images, -1)
        for _ in range(c.refinement_layers):
            x = nn.relu(_conv(x, c.features, dtype))
        mean = (images[0] + images[1]) / 2
        return finished(consistent(mean + _conv(x, 2, jnp.float32)))
