"""Building blocks of encoder and decoders (paper Fig. 1 a, b).

Parameters are float32; products are computed in `dtype`. The residual stream, LayerNorm
statistics, softmax and everything on the grid stay float32.
"""

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from flax import linen as nn

from kst_jax.acquisition import Acquisition
from kst_jax.fourier import fft2c, ifft2c
from kst_jax.models import convolution
from kst_jax.models.attention import attention
from kst_jax.models.dense import dense
from kst_jax.models.layer_norm import LayerNorm
from kst_jax.models.rematerialisation import keep
from kst_jax.non_cartesian import NonCartesian


def positional_encoding(position: jax.Array, width: int) -> jax.Array:
    """Returns sine and cosine features (..., width) of coordinates (..., 2) in [0, 1].

    Half the features encode the row, half the column; sine and cosine are interleaved
    (paper equations 2 and 4).
    """
    frequency = jnp.exp(jnp.arange(0, width // 2, 2) * (-2 * math.log(10_000) / width))
    lead = (1,) * position.ndim
    angle = 250 * position[..., None] * frequency.reshape(*lead, -1)
    waves = jnp.stack([jnp.sin(angle), jnp.cos(angle)], axis=-1)
    return waves.reshape(*position.shape[:-1], width)


def log_magnitude(value: jax.Array) -> jax.Array:
    """Changes magnitudes of values (..., 2 V) to log(1 + magnitude); keeps phases."""
    pairs = value.reshape(*value.shape[:-1], -1, 2)
    # The small constant keeps the gradient at zero finite.
    magnitude = jnp.sqrt(jnp.sum(pairs**2, -1, keepdims=True) + 1e-12)
    return (pairs * jnp.log1p(magnitude) / magnitude).reshape(value.shape)


def uniform_bias(fan_in: int) -> Callable:
    """Returns an initialiser that is uniform in +-1/sqrt(fan_in)."""
    bound = fan_in**-0.5

    def init(key: jax.Array, shape: tuple, dtype: jnp.dtype = jnp.float32) -> jax.Array:
        return jax.random.uniform(key, shape, dtype, -bound, bound)

    return init


# Kernels in +-1/sqrt(fan_in): with `uniform_bias`, PyTorch's initialisation of a layer.
uniform_kernel = nn.initializers.variance_scaling(1 / 3, "fan_in", "uniform")


class Perceptron(nn.Module):
    """Dense, ReLU, Dense. The output layer may have its own precision."""

    hidden: int
    features: int
    dtype: jnp.dtype
    output_dtype: jnp.dtype | None = None

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        """(..., any) to (..., features)."""
        output_dtype = self.output_dtype or self.dtype
        x = nn.relu(_dense("hidden", self.hidden, x.shape[-1], self.dtype)(x))
        return _dense("output", self.features, self.hidden, output_dtype)(x)


def _dense(name: str, features: int, fan_in: int, dtype: jnp.dtype) -> nn.Dense:
    return dense(
        features,
        dtype=dtype,
        kernel_init=nn.initializers.xavier_uniform(),
        bias_init=uniform_bias(fan_in),
        name=name,
    )


class AttentionBlock(nn.Module):
    """Pre-norm multi-head attention with a residual connection on the query.

    One LayerNorm serves query, key and value inputs; the projections have no bias.
    """

    heads: int
    dtype: jnp.dtype
    implementation: str

    @nn.compact
    def __call__(
        self,
        x_BxMxD: jax.Array,
        memory_BxLxD: jax.Array,
        valid_BxL: jax.Array | None = None,
    ) -> jax.Array:
        """Each x attends to all of memory; False in `valid` hides a memory token."""
        width = x_BxMxD.shape[-1]
        norm = LayerNorm(1e-6, self.dtype, name="norm")

        def project(name: str, features: jax.Array) -> jax.Array:
            layer = dense(
                width,
                use_bias=False,
                dtype=self.dtype,
                kernel_init=nn.initializers.xavier_uniform(),
                name=name,
            )
            return layer(features)

        def heads(features: jax.Array) -> jax.Array:
            return features.reshape(*features.shape[:2], self.heads, -1)

        y_BxLxD = norm(memory_BxLxD)
        q_BxMxKxC = heads(project("query", norm(x_BxMxD)))
        k_BxLxKxC = heads(project("key", y_BxLxD))
        v_BxLxKxC = heads(project("value", y_BxLxD))
        # Costs nothing unless a caller asks for `intermediates` (paper Fig. 4).
        self.sow("intermediates", "query_key", (q_BxMxKxC, k_BxLxKxC))
        o_BxMxKxC = attention(
            q_BxMxKxC,
            k_BxLxKxC,
            v_BxLxKxC,
            valid_BxL,
            implementation=self.implementation,
        )
        return keep(x_BxMxD + project("out", o_BxMxKxC.reshape(*x_BxMxD.shape)))


class MLPBlock(nn.Module):
    """Pre-norm perceptron with a residual connection."""

    hidden: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxMxD: jax.Array) -> jax.Array:
        """(B, M, D) to (B, M, D)."""
        y = LayerNorm(1e-5, self.dtype, name="norm")(x_BxMxD)
        mlp = Perceptron(self.hidden, x_BxMxD.shape[-1], self.dtype, name="mlp")
        return keep(x_BxMxD + mlp(y))


class SpectrumHead(nn.Module):
    """Predicts V spectrum values from each hidden state (paper equation 6)."""

    points: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(self, x_BxMxD: jax.Array) -> jax.Array:
        """(B, M, D) to (B, M, 2 V), float32."""
        width = x_BxMxD.shape[-1]
        y = LayerNorm(1e-6, self.dtype, name="norm")(x_BxMxD)
        head = Perceptron(width, 2 * self.points, self.dtype, jnp.float32, name="mlp")
        return head(y)


class Refinement(nn.Module):
    """Convolutions in the image domain, then data consistency (paper equation 7)."""

    features: int
    layers: int
    kernel: int
    dtype: jnp.dtype

    @nn.compact
    def __call__(
        self,
        image_BxHxWx2: jax.Array,
        kspace: jax.Array,
        acquisition: Acquisition | NonCartesian,
    ) -> tuple[jax.Array, jax.Array]:
        """Returns the refined image and its spectrum, both (B, H, W, 2).

        The k-space is (B, H, W, 2), or (B, C, H, W, 2) of several coils; off the grid,
        what `NonCartesian.measured` makes of it.
        """

        def conv(features: int, kernel: int, fan_in: int, dtype: jnp.dtype) -> nn.Conv:
            return convolution.conv(
                features,
                kernel,
                dtype,
                kernel_init=nn.initializers.xavier_uniform(),
                bias_init=uniform_bias(fan_in * kernel**2),
            )

        x = image_BxHxWx2
        for _ in range(self.layers):
            x = keep(conv(self.features, self.kernel, x.shape[-1], self.dtype)(x))
            x = nn.leaky_relu(x, 0.1)
        change = conv(2, 1, self.features, jnp.float32)(x)
        spectrum = fft2c(image_BxHxWx2 + change)
        spectrum = acquisition.completed(spectrum, kspace)
        return ifft2c(spectrum), spectrum
