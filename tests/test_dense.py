"""Dense layers: results and gradients of flax's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen as nn

from kst_jax.models.dense import dense


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("shape", [(7, 5), (2, 7, 5), (2, 3, 4, 5)])
def test_results_and_gradients_equal_those_of_flax(shape, dtype):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal(shape), jnp.float32)
    g = jnp.asarray(rng.standard_normal((*shape[:-1], 3)), dtype)
    flax = nn.Dense(3, dtype=dtype)
    params = flax.init(jax.random.key(0), x)

    def both(layer):
        y, pullback = jax.vjp(layer.apply, params, x)
        return y, *pullback(g)

    tolerance = 1e-6 if dtype == "float32" else 1e-2
    expected = both(flax)
    for found, wanted in zip(
        *map(jax.tree.leaves, (both(dense(3, dtype=dtype)), expected)), strict=True
    ):
        assert found.dtype == wanted.dtype
        error = np.linalg.norm(np.float64(found) - np.float64(wanted))
        assert error <= tolerance * np.linalg.norm(np.float64(wanted))
