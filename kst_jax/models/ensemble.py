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
    magnitudes around the mean image's, plus the mean of the variances that they
    predict, if they do (as in Lakshminarayanan et al., NeurIPS 2017, but with the
    unbiased variance of a few members).

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
    mean = jax.tree.map(lambda x: x.mean(axis=0), each)
    spread = magnitude(each.image) - magnitude(mean.image)[None]
    variance = jnp.sum(spread**2, axis=0) / (len(members) - 1)
    if each.deviation is not None:
        variance += jnp.mean(each.deviation**2, axis=0)
    return mean.replace(deviation=jnp.sqrt(variance), members=each.image)
