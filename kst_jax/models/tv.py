"""Compressed sensing with total variation, its weight chosen by training.

M. Lustig, D. Donoho and J. M. Pauly, "Sparse MRI" (MRM 2007), solved by the primal-dual
iteration of A. Chambolle and T. Pock (JMIV 2011, algorithm 1), with several coils by
that of L. Condat (JOTA 2013).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn
from jax import lax

from kst_jax.acquisition import Acquisition
from kst_jax.fourier import fft2c, ifft2c
from kst_jax.models.config import ModelConfig, require_option, require_positive
from kst_jax.models.contract import Reconstruction, Reconstructor, finished
from kst_jax.tokens import Batch


@dataclasses.dataclass(frozen=True)
class TVConfig(ModelConfig):
    """Options of compressed sensing.

    Attributes:
      iterations: iterations of the primal-dual algorithm.
      weight: initial weight of the total variation. Training differentiates through the
        iterations and updates its logarithm, the only parameter.
    """

    takes_coils = True

    name: str = "tv"
    iterations: int = 150
    weight: float = 0.01

    def __post_init__(self):
        """Raises InputError for values out of range."""
        super().__post_init__()
        require_positive(self)
        require_option(self, "weight", self.weight > 0, "above 0")


def differences(image: jax.Array) -> jax.Array:
    """Differences to the next row and column; (B, H, W, 2) to (B, H, W, 2, 2).

    The last axis holds the two directions; the last difference in each is zero.
    """
    below, right = (jnp.diff(image, axis=n, append=_last(image, n)) for n in (1, 2))
    return jnp.stack([below, right], -1)


def _last(x: jax.Array, axis: int) -> jax.Array:
    return lax.slice_in_dim(x, x.shape[axis] - 1, None, axis=axis)


def divergence(field: jax.Array) -> jax.Array:
    """Minus the adjoint of `differences`; (B, H, W, 2, 2) to (B, H, W, 2)."""
    total = jnp.zeros_like(field[..., 0])
    for n in (1, 2):
        inner = lax.slice_in_dim(field[..., n - 1], 0, field.shape[n] - 1, axis=n)
        pad = [(0, 0)] * 4
        pad[n] = (1, 1)
        total += jnp.diff(jnp.pad(inner, pad), axis=n)
    return total


def minimise(
    kspace: jax.Array, acquisition: Acquisition, weight: jax.Array, iterations: int
) -> jax.Array:
    """Returns the image x that minimises |A x - y|^2 / 2 + weight TV(x).

    TV is isotropic and joint over the real and imaginary part: the sum over pixels of
    the norm of `differences`.

    Args:
      kspace: y, (B, H, W, 2) or, with maps, (B, C, H, W, 2); zero where not sampled.
      acquisition: A.
      weight: a scalar above 0.
      iterations: number of iterations; the error falls with its inverse.

    Returns:
      Images (B, H, W, 2).
    """
    # Step sizes: 1/4 for the dual variable, in units of the weight; hence 1/2 for the
    # primal one, in units of 1 / weight, since the squared norm of `differences` is
    # below 8. On normalised slices, larger primal steps approach the optimum sooner.
    # Only the share of the measured values depends on the weight.
    share = acquisition.mask[..., None] / (1 + 2 * weight)
    zero_filled = acquisition.adjoint(kspace)

    def descend(image: jax.Array, dual: jax.Array) -> jax.Array:
        if acquisition.maps is None:
            spectrum = fft2c(image + divergence(dual) / 2)
            return ifft2c(spectrum + share * (kspace - spectrum))
        # The data have no proximal step in closed form; their gradient has norm 1.
        change = zero_filled - acquisition.normal(image) + weight * divergence(dual)
        return image + change / (0.5 + 2 * weight)

    @jax.checkpoint
    def iterate(carry: tuple, _: None) -> tuple[tuple, None]:
        image, ahead, dual = carry
        dual = dual + differences(ahead) / 4
        dual = dual / jnp.sqrt(jnp.maximum((dual**2).sum((-2, -1), keepdims=True), 1.0))
        new = descend(image, dual)
        return (new, 2 * new - image, dual), None

    dual = jnp.zeros_like(differences(zero_filled))
    start = zero_filled, zero_filled, dual
    return lax.scan(iterate, start, length=iterations)[0][0]


class TV(Reconstructor):
    """Reconstructs slices."""

    config: TVConfig

    title = "Total variation"

    @nn.compact
    def __call__(self, batch: Batch, stage: str = "RM") -> Reconstruction:
        """Reconstructs a batch; there is only one stage."""
        del stage
        c = self.config
        start = nn.initializers.constant(np.log(c.weight))
        weight = jnp.exp(self.param("log_weight", start, ()))
        return finished(minimise(batch.kspace, batch.cartesian, weight, c.iterations))
