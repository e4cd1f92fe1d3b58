"""Convolution that is fast on CPUs for narrow images and in a loop over layers."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import linen as nn
from jax import lax

from kst_jax import parallel

_IMAGES = ("NHWC", "HWIO", "NHWC")
# From this many columns on, XLA's CPU kernel uses more than one core.
_WIDE = 128
# Most values that the copies of an image strip may hold; more do not fit the cache.
_STRIP = 2**20


def convolve(x_BxHxWxC: jax.Array, kernel: jax.Array) -> jax.Array:
    """Zero-padded convolution (B, H, W, C) -> (B, H, W, C'), kernel not flipped.

    Args:
      x_BxHxWxC: images.
      kernel: (k, k, C, C') with odd k.
    """
    return _convolve(x_BxHxWxC, parallel.own_beside(x_BxHxWxC, kernel))


def _plain(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x, kernel, (1, 1), "SAME", dimension_numbers=_IMAGES
    )


def _convolved(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return lax.platform_dependent(x, kernel, cpu=_convolved_cpu, default=_plain)


def _convolved_cpu(x: jax.Array, kernel: jax.Array) -> jax.Array:
    """Convolves all images as one wide image: halves side by side, zeros between.

    XLA's CPU kernel shares only the columns of an image among threads, so narrow images
    keep a single core busy.
    """
    B, H, W, C = x.shape
    if W >= _WIDE:
        return _plain(x, kernel)
    pad, half = kernel.shape[0] // 2, -(-H // 2)
    x = jnp.pad(x, [(0, 0), (pad, 2 * half - H + pad), (0, pad), (0, 0)])
    rows = [x[:, : half + 2 * pad], x[:, half:]]
    wide = jnp.stack(rows, 1).transpose(2, 0, 1, 3, 4)
    wide = wide.reshape(1, half + 2 * pad, -1, C)
    wide = lax.conv_general_dilated(
        wide, kernel, (1, 1), [(0, 0), (pad, pad)], dimension_numbers=_IMAGES
    )
    wide = wide.reshape(half, B, 2, W + pad, -1)[:, :, :, :W]
    return wide.transpose(1, 2, 0, 3, 4).reshape(B, 2 * half, W, -1)[:, :H]


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return _convolved(x, kernel), (x, kernel)


def _backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    x, kernel = saved
    flipped = jnp.flip(kernel, (0, 1)).swapaxes(2, 3)
    dkernel = lax.platform_dependent(
        x, g, kernel, cpu=_kernel_gradient_cpu, default=_kernel_gradient
    )
    return _convolved(g, flipped), dkernel


def _kernel_gradient(x: jax.Array, g: jax.Array, kernel: jax.Array) -> jax.Array:
    return jax.vjp(lambda w: _plain(x, w), kernel)[1](g)[0]


def _kernel_gradient_cpu(x: jax.Array, g: jax.Array, kernel: jax.Array) -> jax.Array:
    """Computes the kernel's gradient: the sum of one matrix product per image strip.

    XLA's CPU kernels for a convolution whose "kernel" is as large as an image reach
    half the rate of its matrix product, and a thirtieth inside a loop over layers.
    Channels come first, and rows are padded at the end, so that a strip shifted by a
    kernel's offset is one slice of memory. Either operand may be shifted, with opposite
    sign; we shift the one with fewer channels.
    """
    if x.shape[-1] > g.shape[-1]:
        mirrored = _kernel_gradient_cpu(g, x, kernel.swapaxes(2, 3))
        return jnp.flip(mirrored, (0, 1)).swapaxes(2, 3)
    (rows, columns, C, D), W = kernel.shape, x.shape[2]
    up, left = rows // 2, columns // 2
    width = W + 2 * left
    x, g = _strips(x, g, up, height=max(1, _STRIP // (rows * columns * C * width)))
    S, height = g.shape[:2]
    x = jnp.pad(x, [(0, 0), (0, 0), (left, left), (0, 0)]).reshape(S, -1, C)
    x_SxCxL = jnp.pad(x, [(0, 0), (0, 2 * left), (0, 0)]).swapaxes(1, 2)
    g_SxLxD = jnp.pad(g, [(0, 0), (0, 0), (0, 2 * left), (0, 0)]).reshape(S, -1, D)
    # The barriers stop XLA from undoing the transposition or shifting in the product.
    x_SxCxL = lax.optimization_barrier(x_SxCxL)
    offsets = [i * width + j for i in range(rows) for j in range(columns)]

    def add(total: jax.Array, strip: tuple) -> tuple[jax.Array, None]:
        x_CxL, g_LxD = strip
        shifted = [x_CxL[:, at : at + height * width] for at in offsets]
        stacked = lax.optimization_barrier(jnp.concatenate(shifted))
        return total + jnp.dot(stacked, g_LxD, preferred_element_type=total.dtype), None

    start = jnp.zeros_like(kernel, jnp.float32).reshape(-1, D)
    total, _ = lax.scan(add, start, (x_SxCxL, g_SxLxD))
    return total.reshape(kernel.shape).astype(kernel.dtype)


def _strips(
    x: jax.Array, g: jax.Array, up: int, height: int
) -> tuple[jax.Array, jax.Array]:
    """Cuts images into equal strips of at most `height` rows, (S, rows, W, C).

    Strips of `x` have `up` more rows above and below: their neighbours', or zeros.
    """
    B, H = g.shape[:2]
    count = -(-H // height)
    height = -(-H // count)
    missing = count * height - H
    x = jnp.pad(x, [(0, 0), (up, up + missing), (0, 0), (0, 0)])
    g = jnp.pad(g, [(0, 0), (0, missing), (0, 0), (0, 0)])
    starts = range(0, count * height, height)
    x = jnp.stack([x[:, at : at + height + 2 * up] for at in starts], 1)
    return x.reshape(-1, *x.shape[2:]), g.reshape(B * count, height, *g.shape[2:])


_convolve = jax.custom_vjp(_convolved)
_convolve.defvjp(_forward, _backward)


def _for_flax(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """`convolve` in place of `lax.conv_general_dilated` in `nn.Conv`."""
    return convolve(x, kernel)


def conv(
    features: int, size: int, dtype: jax.typing.DTypeLike, **options: Any
) -> nn.Conv:
    """Makes a layer of `convolve` with a bias.

    Args:
      features: channels of the result.
      size: rows and columns of the kernel, odd.
      dtype: precision of products.
      **options: further options of `nn.Conv`: initialisers, `use_bias`, `name`.
    """
    return nn.Conv(
        features,
        (size, size),
        dtype=dtype,
        conv_general_dilated=_for_flax,
        **options,
    )
