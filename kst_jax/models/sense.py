"""CG-SENSE: regularised least squares of all coils, its weight chosen by training.

K. P. Pruessmann et al., "Advances in sensitivity encoding with arbitrary k-space
trajectories" (MRM 2001).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from kst_jax.acquisition import Acquisition
from kst_jax.models.config import ModelConfig, require_option, require_positive
from kst_jax.models.contract import Reconstruction, Reconstructor, finished
from kst_jax.tokens import Batch


@dataclasses.dataclass(frozen=True)
class SENSEConfig(ModelConfig):
    """Options of CG-SENSE.

    Attributes:
      iterations: iterations of the conjugate gradients, at most.
      weight: initial weight of the image's squared norm. Training differentiates
        through the iterations and updates its logarithm, the only parameter.
    """

    takes_coils = True

    name: str = "sense"
    iterations: int = 30
    weight: float = 0.01

    def __post_init__(self):
        """Raises InputError for values out of range."""
        super().__post_init__()
        require_positive(self)
        require_option(self, "weight", self.weight > 0, "above 0")


def minimise(
    kspace: jax.Array, acquisition: Acquisition, weight: jax.Array, iterations: int
) -> jax.Array:
    """Returns the image x that minimises |A x - y|^2 + weight |x|^2.

    Conjugate gradients start from zero and stop early at a residual of 1e-5 of the
    zero-filled image. Without maps, x is the zero-filled image over 1 + weight.

    Args:
      kspace: y, (B, H, W, 2) or, with maps, (B, C, H, W, 2); zero where not sampled.
      acquisition: A.
      weight: a scalar above 0.
      iterations: number of iterations, at most.

    Returns:
      Images (B, H, W, 2).
    """
    start = acquisition.adjoint(kspace)
    least = 1e-10 * _inner(start, start)

    @jax.checkpoint
    def iterate(carry: tuple, _: None) -> tuple[tuple, None]:
        image, residual, direction, energy = carry
        product = acquisition.normal(direction) + weight * direction
        going = energy > least  # else the slice stays as it is
        step = _ratio(energy, _inner(direction, product), going)
        image, residual = image + step * direction, residual - step * product
        new = _inner(residual, residual)
        direction = residual + _ratio(new, energy, going) * direction
        return (image, residual, direction, new), None

    carry = (jnp.zeros_like(start), start, start, _inner(start, start))
    return lax.scan(iterate, carry, length=iterations)[0][0]


def _inner(x: jax.Array, y: jax.Array) -> jax.Array:
    """Inner product of each slice, (B, H, W, 2) to (B, 1, 1, 1)."""
    return (x * y).sum((1, 2, 3), keepdims=True)


def _ratio(x: jax.Array, y: jax.Array, holds: jax.Array) -> jax.Array:
    """Quotient where a condition holds, else 0; its gradient is finite everywhere."""
    return jnp.where(holds, x / jnp.where(holds, y, 1), 0)


class SENSE(Reconstructor):
    """Reconstructs slices of several coils, or of one."""

    config: SENSEConfig

    title = "CG-SENSE"

    @nn.compact
    def __call__(self, batch: Batch, stage: str = "RM") -> Reconstruction:
        """Reconstructs a batch; there is only one stage."""
        del stage
        c = self.config
        start = nn.initializers.constant(np.log(c.weight))
        weight = jnp.exp(self.param("log_weight", start, ()))
        return finished(minimise(batch.kspace, batch.acquisition, weight, c.iterations))
