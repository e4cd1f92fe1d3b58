"""Convolution: values and both gradients are those of XLA's own."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax
from scipy import signal

from kst_jax.models.convolution import convolve

pytestmark = pytest.mark.usefixtures("full_compilation")


def arrays(size, channels=(3, 5), grid=(9, 7)):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, *grid, channels[0])).astype(np.float32)
    kernel = rng.normal(size=(size, size, *channels)).astype(np.float32)
    return jnp.asarray(x), jnp.asarray(kernel)


# On a CPU narrow images go another way than wide ones.
@pytest.mark.parametrize("grid", [(9, 7), (4, 130)])
@pytest.mark.parametrize("size", [1, 3, 5])
def test_values_are_scipys(size, grid):
    x, kernel = arrays(size, grid=grid)
    got = convolve(x, kernel)
    for b in range(2):
        for o in range(5):
            wanted = sum(
                signal.correlate2d(x[b, ..., i], kernel[..., i, o], mode="same")
                for i in range(3)
            )
            np.testing.assert_allclose(got[b, ..., o], wanted, atol=1e-4)


@pytest.mark.parametrize("grid", [(9, 7), (4, 130)])
@pytest.mark.parametrize("size", [1, 3, 5])
@pytest.mark.parametrize("channels", [(3, 5), (5, 3)])
def test_gradients_are_xlas(channels, size, grid):
    def plain(x, kernel):
        return lax.conv_general_dilated(
            x, kernel, (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
        )

    x, kernel = arrays(size, channels, grid)
    got, wanted = (
        jax.jit(jax.grad(lambda *a, f=f: jnp.sum(jnp.sin(f(*a))), argnums=(0, 1)))(
            x, kernel
        )
        for f in (convolve, plain)
    )
    for a, b in zip(got, wanted, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_kernel_gradient_of_large_images_is_a_correlation():
    x, kernel = arrays(3, channels=(16, 17), grid=(61, 130))  # cut into unequal strips
    g = np.random.default_rng(1).normal(size=(*x.shape[:3], 17)).astype(np.float32)
    got = jax.grad(lambda k: jnp.sum(g * convolve(x, k)))(kernel)
    padded = np.pad(np.float64(x), [(0, 0), (1, 1), (1, 1), (0, 0)])
    for i, j in np.ndindex(3, 3):
        shifted = padded[:, i : i + 61, j : j + 130]
        wanted = np.einsum("bhwc,bhwd->cd", shifted, np.float64(g))
        np.testing.assert_allclose(got[i, j], wanted, atol=2e-3)


@pytest.mark.parametrize("platform", ["cuda", "tpu"])
def test_accelerators_get_xlas_own_convolutions(platform):
    """Without the copies and the loop that serve a CPU."""
    x, kernel = arrays(3)
    gradient = jax.jit(jax.grad(lambda k: jnp.sum(convolve(x, k) ** 2)))
    text = jax.export.export(gradient, platforms=[platform])(kernel).mlir_module()
    for operation, count in (("convolution", 2), ("pad", 0), ("while", 0)):
        assert text.count(f"stablehlo.{operation}") == count, operation
