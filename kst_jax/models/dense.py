"""Dense layers whose gradient is fast on a CPU."""

from typing import Any

import jax
from flax import linen as nn

from kst_jax import parallel


def dense(features: int, **options: Any) -> nn.Dense:
    """Makes a dense layer, (..., any) to (..., features).

    Args:
      features: channels of the result.
      **options: further options of `nn.Dense`.
    """
    return nn.Dense(features, dot_general=_for_flax, **options)


def _for_flax(x: jax.Array, kernel: jax.Array, *_: Any, **__: Any) -> jax.Array:
    """`_product` in place of `lax.dot_general` in `nn.Dense`."""
    return _product(x, parallel.own_beside(x, kernel))


@jax.custom_vjp
def _product(x: jax.Array, kernel: jax.Array) -> jax.Array:
    return x @ kernel


def _forward(x: jax.Array, kernel: jax.Array) -> tuple[jax.Array, tuple]:
    return x @ kernel, (x, kernel)


def _backward(saved: tuple, g: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The textbook gradient; for JAX's own, XLA copies `g` to transpose it on a CPU."""
    x, kernel = saved
    rows_NxC, g_NxD = (z.reshape(-1, z.shape[-1]) for z in (x, g))
    return g @ kernel.T, rows_NxC.T @ g_NxD


_product.defvjp(_forward, _backward)
