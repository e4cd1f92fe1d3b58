"""The networks that the paper compares with, made small."""

import functools

import jax
import numpy as np

from kst_jax.models.admm import ADMMConfig
from kst_jax.models.d5c5 import D5C5Config
from kst_jax.models.oucr import OUCRConfig
from kst_jax.models.registry import build
from kst_jax.models.sense import SENSEConfig
from kst_jax.models.tv import TVConfig
from kst_jax.models.unet import KUNetConfig, UNetConfig
from kst_jax.models.varnet import VarNetConfig
from tests.references import make_kst_tiny

TINY = {
    "d5c5": D5C5Config(cascades=2, layers=3, features=4),
    "unet": UNetConfig(features=2, poolings=1),
    "kunet": KUNetConfig(features=2, poolings=1, consistent=True),
    "oucr": OUCRConfig(iterations=2, features=4, under_levels=1, refinement_layers=1),
    "admm": ADMMConfig(iterations=2, features=4, points=11),
    "tv": TVConfig(iterations=20),
    "sense": SENSEConfig(iterations=5),
    "varnet": VarNetConfig(cascades=2, features=2, poolings=1, sensitivity_poolings=1),
}


@functools.cache
def tiny(name):
    """A network, parameters and its compiled forward pass."""
    model = build(TINY[name])
    example, rng = make_kst_tiny.example(), np.random.default_rng(0)
    shapes = jax.eval_shape(model.init, jax.random.key(0), example)["params"]
    params = jax.tree.map(
        lambda x: (0.3 * rng.normal(size=x.shape)).astype(np.float32), shapes
    )
    apply = jax.jit(lambda params, batch: model.apply({"params": params}, batch))
    return model, params, apply
