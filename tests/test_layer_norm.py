"""LayerNorm: values and gradients are those of Flax's own."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kst_jax.models.layer_norm import LayerNorm

pytestmark = pytest.mark.usefixtures("full_compilation")


@pytest.mark.parametrize("shape", [(2, 37, 12), (5, 8)])
@pytest.mark.parametrize("offset", [0.0, 3.0])
def test_values_and_gradients_are_flaxs(shape, offset):
    rng = np.random.default_rng(0)
    x = jnp.asarray(offset + rng.normal(size=shape), jnp.float32)
    scale, bias = jnp.asarray(rng.normal(size=(2, shape[-1])), jnp.float32)

    def loss(module, *arguments):
        x, scale, bias = arguments
        y = module.apply({"params": {"scale": scale, "bias": bias}}, x)
        return jnp.sum(jnp.sin(y)), y

    results = []
    for module in (LayerNorm(1e-5, jnp.float32), nn.LayerNorm(epsilon=1e-5)):
        gradient = jax.grad(functools.partial(loss, module), (0, 1, 2), has_aux=True)
        results.append(jax.tree.leaves(jax.jit(gradient)(x, scale, bias)))
    for got, wanted in zip(*results, strict=True):
        np.testing.assert_allclose(got, wanted, rtol=2e-4, atol=2e-4)


def test_the_output_alone_is_rounded():
    x = 1000 + jnp.arange(8.0).reshape(1, 8)
    module = LayerNorm(1e-6, jnp.bfloat16)
    y = module.apply(module.init(jax.random.key(0), x), x)
    assert y.dtype == jnp.bfloat16
    np.testing.assert_allclose(y.astype(jnp.float32).std(), 1, rtol=0.05)
