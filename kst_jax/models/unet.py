"""U-Nets that reconstruct from zero-filled images or zero-filled spectra.

O. Ronneberger, P. Fischer and T. Brox, "U-Net" (MICCAI 2015, arXiv 1505.04597), in the
form of J. Zbontar et al., "fastMRI" (arXiv 1811.08839): instance normalisation without
parameters, average pooling, transposed convolutions.
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import linen as nn

from kst_jax.data_config import CoilsConfig
from kst_jax.errors import InputError, require
from kst_jax.fourier import ifft2c
from kst_jax.models.blocks import uniform_bias, uniform_kernel
from kst_jax.models.config import ModelConfig, require_option, require_positive
from kst_jax.models.contract import Reconstruction, Reconstructor, finished
from kst_jax.models.convolution import conv
from kst_jax.models.dense import dense
from kst_jax.models.rematerialisation import keep
from kst_jax.tokens import Batch


@dataclasses.dataclass(frozen=True)
class UNetConfig(ModelConfig):
    """Sizes of a U-Net; the defaults are those of fastMRI's small one.

    Attributes:
      features: channels at full resolution, doubled by each pooling.
      poolings: how often the resolution is halved.
      consistent: put the measured values back into the result's spectrum. Off by
        default, as in fastMRI's baseline; the K-Space Transformer's paper does not
        mention it.
    """

    takes_coils = True
    takes_trajectories = True

    name: str = "unet"
    features: int = 32
    poolings: int = 4
    consistent: bool = False

    def __post_init__(self):
        """Raises InputError if no network can have these sizes."""
        super().__post_init__()
        require_positive(self)

    def require_size(self, size: tuple[int, int]) -> None:
        """Raises InputError if images cannot be halved that often."""
        least = 2 ** (self.poolings + 1)
        if min(size) < least:
            raise InputError(
                f"data.size={size} is too small for model.poolings={self.poolings}: "
                f"rows and columns must be at least {least}; use fewer poolings"
            )

    def require_coils(self, coils: CoilsConfig) -> None:
        """Raises InputError for what needs a phase: of several coils it sees none."""
        super().require_coils(coils)
        reason = f"for model.name={self.name!r}, which sees no phase of several coils"
        require(
            coils.target == "rss",
            "config.data.coils.target",
            coils.target,
            "'rss' (with train.error='ssim'), or the coils combined before "
            f"undersampling (data.coils.combine=True), {reason}",
        )
        require_option(self, "consistent", not self.consistent, f"False {reason}")

    def require_trajectories(self, kind: str, coils: CoilsConfig) -> None:
        """Raises InputError for several coils: it takes those of the grid alone."""
        super().require_trajectories(kind, coils)
        require(
            not coils.separate,
            "config.data.coils.count",
            coils.count,
            f"1, or combined (data.coils.combine), for model.name={self.name!r} if "
            f"mask.kind={kind!r}",
        )


@dataclasses.dataclass(frozen=True)
class KUNetConfig(UNetConfig):
    """Sizes of a U-Net on the spectrum of one coil; see `UNetConfig`."""

    takes_coils = False
    takes_trajectories = False

    name: str = "kunet"


class ConvBlock(nn.Module):
    """Two convolutions, each with instance normalisation and LeakyReLU."""

    features: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, H, W, any) to (B, H, W, features)."""
        for _ in range(2):
            layer = conv(
                self.features, 3, self.dtype, use_bias=False, kernel_init=uniform_kernel
            )
            x = activate(keep(layer(x)))
        return x


class Enlarge(nn.Module):
    """A transposed convolution, 2x2 with stride 2: each pixel becomes four."""

    features: int
    dtype: jax.typing.DTypeLike

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(B, h, w, any) to (B, 2h, 2w, features)."""
        B, h, w, _ = x.shape
        # For a transposed convolution PyTorch's fan_in counts outputs, not inputs.
        bound = uniform_bias(4 * self.features)
        pixels = dense(
            4 * self.features, use_bias=False, dtype=self.dtype, kernel_init=bound
        )(x)
        pixels = pixels.reshape(B, h, w, 2, 2, self.features).swapaxes(2, 3)
        return activate(keep(pixels.reshape(B, 2 * h, 2 * w, self.features)))


def activate(x: jax.Array) -> jax.Array:
    """Normalises each channel of each slice, in float32; then LeakyReLU."""
    y = x.astype(jnp.float32)
    y = y - y.mean((1, 2), keepdims=True)
    y = y * jax.lax.rsqrt((y * y).mean((1, 2), keepdims=True) + 1e-5)
    return nn.leaky_relu(y, 0.2).astype(x.dtype)


def halve(x: jax.Array) -> jax.Array:
    """Averages over 2x2 pixels; (B, H, W, C) to (B, H // 2, W // 2, C)."""
    B, H, W, C = x.shape
    x = x[:, : H // 2 * 2, : W // 2 * 2]
    return x.reshape(B, H // 2, 2, W // 2, 2, C).mean((2, 4))


def layers(
    x: jax.Array, features: int, poolings: int, dtype: jax.typing.DTypeLike
) -> jax.Array:
    """All layers of a U-Net, (B, H, W, any) to (B, H, W, 2), float32.

    Call it in a compact method: the parameters are those of the caller.
    """
    skipped = []
    for level in range(poolings):
        skipped.append(ConvBlock(features << level, dtype)(x))
        x = halve(skipped[-1])
    x = ConvBlock(features << poolings, dtype)(x)
    for level in reversed(range(poolings)):
        x = Enlarge(features << level, dtype)(x)
        skip = skipped.pop()
        # If a size was odd, pooling dropped a row or column.
        missing = [(0, m - n) for m, n in zip(skip.shape, x.shape, strict=True)]
        x = jnp.pad(x, [*missing[:3], (0, 0)], mode="reflect")
        x = ConvBlock(features << level, dtype)(jnp.concatenate([x, skip], -1))
    start = {"kernel_init": uniform_kernel, "bias_init": uniform_bias(features)}
    return conv(2, 1, jnp.float32, **start)(x)


def zero_filled(batch: Batch) -> jax.Array:
    """What a U-Net sees of a batch, (B, H, W, 2)."""
    if batch.maps is None:
        return batch.acquisition.adjoint(batch.kspace)
    coils = ifft2c(batch.cartesian.sampled(batch.kspace))
    squares = (coils**2).sum((1, -1))
    return jnp.stack([jnp.sqrt(squares), 0 * squares], axis=-1)


class UNet(Reconstructor):
    """Reconstructs slices from their zero-filled images.

    Of several coils it sees the root sum of squares of their zero-filled images, as in
    fastMRI: a magnitude, whose imaginary part is zero. So the result's phase means
    nothing; train towards `data.coils.target="rss"`.
    """

    config: UNetConfig

    title = "U-Net"
    in_kspace: ClassVar[bool] = False

    @nn.compact
    def __call__(self, batch: Batch, stage: str = "RM") -> Reconstruction:
        """Reconstructs a batch; there is only one stage."""
        del stage
        c = self.config
        sizes = c.features, c.poolings, jnp.dtype(c.dtype)
        if self.in_kspace:
            image = ifft2c(layers(batch.kspace, *sizes))
        else:
            image = layers(zero_filled(batch), *sizes)
        if c.consistent:
            measured = batch.acquisition.measured(batch.kspace)
            image = batch.acquisition.consistent(image, measured)
        return finished(image)


class KUNet(UNet):
    """Reconstructs slices with a U-Net on their zero-filled spectra."""

    config: KUNetConfig

    title = "K-UNet"
    in_kspace = True
