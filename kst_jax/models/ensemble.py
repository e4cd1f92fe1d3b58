"""Reconstructs with several networks that differ in their seed, as one."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from kst_jax.fourier import magnitude
from kst_jax.models.contract import Reconstruction, Reconstructor
from kst_jax.tokens import Batch


def reconstruct(
    model: Reconstructor, members: Sequence[dict], batch: Batch, stage: str = "RM"
) -> Reconstruction:
    """Reconstructs a batch with one network, or with each member of an ensemble.

    Images of an ensemble are the members' means. Where each member returns what was
    measured, so does the mean. The variance of the magnitude is that of the members'
    magnitudes, plus the mean of the variances that they predict, if they do
    (Lakshminarayanan et al., NeurIPS 2017).

    Args:
      model: the network.
      members: parameters of one or more networks.
      batch: the slices.
      stage: how far to go, as for `model.reconstruct`.
    """
    if len(members) == 1:
        return model.reconstruct(members[0], batch, stage)
    # One after another, and compiled once: all at once would need their memory.
    each = jax.lax.map(
        lambda params: model.reconstruct(params, batch, stage),
        jax.tree.map(lambda *leaves: jnp.stack(leaves), *members),
    )
    variance = jnp.var(magnitude(each.image), axis=0, ddof=1)
    if each.deviation is not None:
        variance += jnp.mean(each.deviation**2, axis=0)
    mean = jax.tree.map(lambda x: x.mean(axis=0), each)
    return mean.replace(deviation=jnp.sqrt(variance), members=each.image)
