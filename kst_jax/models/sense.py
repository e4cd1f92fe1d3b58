"""CG-SENSE: regularised least squares of all coils, its weight chosen by training.

K. P. Pruessmann et al., "Advances in sensitivity encoding with arbitrary k-space
trajectories" (MRM 2001).
"""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from flax import linen as nn

from kst_jax.acquisition import Acquisition
from kst_jax.conjugate_gradients import solve
from kst_jax.models.config import ModelConfig, require_option, require_positive
from kst_jax.models.contract import Reconstruction, Reconstructor, finished
from kst_jax.non_cartesian import NonCartesian
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
    takes_trajectories = True

    name: str = "sense"
    iterations: int = 30
    weight: float = 0.01

    def __post_init__(self):
        """Raises InputError for values out of range."""
        super().__post_init__()
        require_positive(self)
        require_option(self, "weight", self.weight > 0, "above 0")


def minimise(
    kspace: jax.Array,
    acquisition: Acquisition | NonCartesian,
    weight: jax.Array,
    iterations: int,
) -> jax.Array:
    """Returns the image x that minimises |A x - y|^2 + weight |x|^2.

    Conjugate gradients start from zero and stop early at a residual of 1e-5 of the
    zero-filled image. Without maps, x is the zero-filled image over 1 + weight.

    Args:
      kspace: y, (B, H, W, 2) or, with maps, (B, C, H, W, 2), zero where not sampled;
        off the grid (B, N, 2) or (B, C, N, 2).
      acquisition: A; all samples count alike, however dense they are.
      weight: a scalar above 0.
      iterations: number of iterations, at most.

    Returns:
      Images (B, H, W, 2).
    """
    acquisition = acquisition.unweighted()
    return solve(
        lambda x: acquisition.normal(x) + weight * x,
        acquisition.adjoint(kspace),
        iterations,
    )


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
