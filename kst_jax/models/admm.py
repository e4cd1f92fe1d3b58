"""ADMM-CSNet: the alternating direction method of multipliers, unrolled and learnt.

Y. Yang, J. Sun, H. Li and Z. Xu, "Deep ADMM-Net for compressive sensing MRI" (NeurIPS
2016) and "ADMM-CSNet" (IEEE TPAMI 2020). The K-Space Transformer's paper does not say
which variant it compares with; this is the second one as its authors published it: all
iterations share one set of parameters, and real and imaginary parts are treated alike.
Only the penalty differs: it is learnt as a logarithm here, which keeps it positive.
"""

import dataclasses

import jax
import jax.numpy as jnp
from flax import linen as nn

from kst_jax import parallel
from kst_jax.fourier import fft2c, ifft2c
from kst_jax.models.config import (
    ModelConfig,
    require_odd,
    require_option,
    require_positive,
)
from kst_jax.models.contract import Reconstruction, Reconstructor, finished
from kst_jax.models.convolution import conv
from kst_jax.tokens import Batch


@dataclasses.dataclass(frozen=True)
class ADMMConfig(ModelConfig):
    """Sizes and starting values of ADMM-CSNet.

    Attributes:
      iterations: iterations of the algorithm, before a last reconstruction.
      features: filters of a convolution, each with its own nonlinearity.
      kernel: size of the filters.
      points: control points of a nonlinearity, spaced evenly over [-1, 1].
      threshold: threshold of the soft thresholding that nonlinearities start as; our
        choice is the distance between two control points.
      rho: initial penalty of the algorithm.
      rate: initial update rate of the multipliers.
    """

    name: str = "admm"
    iterations: int = 10
    features: int = 128
    kernel: int = 5
    points: int = 101
    threshold: float = 0.02
    rho: float = 0.1
    rate: float = 1.0

    def __post_init__(self):
        """Raises InputError if no network can have these sizes."""
        super().__post_init__()
        require_positive(self)
        require_odd(self, "kernel")
        for name, least in (("points", 2), ("threshold", 0), ("rate", 0)):
            holds = getattr(self, name) >= least
            require_option(self, name, holds, f"at least {least}")
        require_option(self, "rho", self.rho > 0, "above 0")


@jax.custom_vjp
def _interpolate(values_CxP: jax.Array, x: jax.Array) -> jax.Array:
    """Applies to each channel of x (..., C) a function given at P points in [-1, 1]."""
    within, share, flat = _places(values_CxP, x)
    low, high = (values_CxP.ravel()[flat + n] for n in (0, 1))
    return low + share * (high - low) + (x - within)


def _places(values_CxP: jax.Array, x: jax.Array) -> tuple[jax.Array, ...]:
    """Returns x clipped, its distance from the point to its left, and that index."""
    C, P = values_CxP.shape
    within = jnp.clip(x, -1, 1)
    place = (within + 1) * ((P - 1) / 2)
    left = jnp.minimum(place.astype(jnp.int32), P - 2)
    first = P * jnp.arange(C).reshape((1,) * (x.ndim - 1) + (C,))
    return within, place - left, left + first


def _forward(values_CxP: jax.Array, x: jax.Array) -> tuple[jax.Array, tuple]:
    return _interpolate(values_CxP, x), (values_CxP, x)


def _backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The gradient; JAX's own updates the table twice and takes a CPU twice as long."""
    values_CxP, x = saved
    C, P = values_CxP.shape
    _, share, flat = _places(values_CxP, x)
    slopes = jnp.pad(jnp.diff(values_CxP), [(0, 0), (0, 1)]) * ((P - 1) / 2)
    dx = g * jnp.where(jnp.abs(x) < 1, slopes.ravel()[flat], 1)
    sums = jnp.zeros_like(values_CxP, shape=(C * P, 2))
    sums = sums.at[flat].add(jnp.stack([g, g * share], -1)).reshape(C, P, 2)
    whole, right = sums[..., 0], sums[..., 1]
    return whole - right + jnp.pad(right, [(0, 0), (1, 0)])[:, :-1], dx


_interpolate.defvjp(_forward, _backward)


class PiecewiseLinear(nn.Module):
    """A function per channel, linear between control points over [-1, 1].

    Outside that range its slope is 1, as published.
    """

    points: int
    threshold: float

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., C) to (..., C)."""
        shape = x.shape[-1], self.points
        values_CxP = self.param("values", self._soft_threshold, shape)
        return _interpolate(parallel.own_beside(x, values_CxP), x)

    @nn.nowrap
    def _soft_threshold(self, key: jax.Array, shape: tuple[int, int]) -> jax.Array:
        del key
        p = jnp.linspace(-1, 1, shape[1])
        soft = jnp.sign(p) * jnp.maximum(jnp.abs(p) - self.threshold, 0)
        return jnp.broadcast_to(soft, shape)


class Correction(nn.Module):
    """The learnt prior's correction to an image: filters, nonlinearities, filters."""

    config: ADMMConfig

    @nn.compact
    def __call__(self, image: jax.Array) -> jax.Array:
        """(B, H, W, 2) to (B, H, W, 2), float32."""
        c, (B, H, W, _) = self.config, image.shape
        start = {"kernel_init": nn.initializers.normal(0.025)}
        x = jnp.moveaxis(image, -1, 1).reshape(2 * B, H, W, 1)
        x = conv(c.features, c.kernel, jnp.dtype(c.dtype), **start)(x)
        x = PiecewiseLinear(c.points, c.threshold)(x.astype(jnp.float32))
        x = conv(1, c.kernel, jnp.dtype(c.dtype), **start)(x).astype(jnp.float32)
        return jnp.moveaxis(x.reshape(B, 2, H, W), 1, -1)


class ADMM(Reconstructor):
    """Reconstructs slices and keeps the measured values."""

    config: ADMMConfig

    title = "ADMM-CSNet"

    @nn.compact
    def __call__(self, batch: Batch, stage: str = "RM") -> Reconstruction:
        """Reconstructs a batch; there is only one stage."""
        del stage
        c = self.config
        log_rho = self.param("log_rho", nn.initializers.constant(jnp.log(c.rho)), ())
        rate = self.param("rate", nn.initializers.constant(c.rate), ())
        correction, rho = Correction(c), jnp.exp(log_rho)

        def reconstruct(prior: jax.Array) -> jax.Array:
            """Averages the measured spectrum and the prior's, weighted."""
            weight = batch.cartesian.mask[..., None] + rho
            return (batch.kspace + rho * fft2c(prior)) / weight

        denoised = multiplier = jnp.zeros_like(batch.kspace)
        for _ in range(c.iterations):
            image = ifft2c(reconstruct(denoised - multiplier))
            denoised = image + multiplier
            denoised = denoised - correction(denoised)
            multiplier = multiplier + rate * (image - denoised)
        spectrum = reconstruct(denoised - multiplier)
        return finished(ifft2c(batch.cartesian.fill(spectrum, batch.kspace)))
