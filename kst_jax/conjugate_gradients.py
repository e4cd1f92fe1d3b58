"""Conjugate gradients for the normal equations of images."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax import lax


def solve(
    normal: Callable[[jax.Array], jax.Array], right: jax.Array, iterations: int
) -> jax.Array:
    """Returns the images x that solve normal(x) = right, slice by slice.

    Iterations start from zero, and stop early for a slice at a residual of 1e-5 of its
    right side. They can be differentiated.

    Args:
      normal: a symmetric positive definite operator on images (B, H, W, 2).
      right: images (B, H, W, 2).
      iterations: number of iterations, at most.
    """
    least = 1e-10 * _inner(right, right)

    @jax.checkpoint
    def iterate(carry: tuple, _: None) -> tuple[tuple, None]:
        image, residual, direction, energy = carry
        product = normal(direction)
        going = energy > least  # else the slice stays as it is
        step = _ratio(energy, _inner(direction, product), going)
        image, residual = image + step * direction, residual - step * product
        new = _inner(residual, residual)
        direction = residual + _ratio(new, energy, going) * direction
        return (image, residual, direction, new), None

    carry = (jnp.zeros_like(right), right, right, _inner(right, right))
    return lax.scan(iterate, carry, length=iterations)[0][0]


def _inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """Inner product of each slice, (B, H, W, 2) to (B, 1, 1, 1)."""
    return (x * y).sum((1, 2, 3), keepdims=True)


def _ratio(x: jax.Array, y: jax.Array, holds: jax.Array) -> jax.Array:
    """Quotient where a condition holds, else 0; its gradient is finite everywhere."""
    return jnp.where(holds, x / jnp.where(holds, y, 1), 0)
