"""Each network that the paper compares with, against its definition elsewhere.

By numpy, scipy and PyTorch.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util
from scipy import ndimage, optimize, signal

from kst_jax import tokens
from kst_jax.acquisition import Acquisition
from kst_jax.fourier import fft2c, ifft2c
from kst_jax.models.admm import PiecewiseLinear
from kst_jax.models.registry import build
from kst_jax.models.tv import differences, divergence, minimise
from kst_jax.models.unet import KUNetConfig, UNetConfig
from tests.baselines import tiny
from tests.conftest import ROOT
from tests.references import make_kst_tiny

pytestmark = pytest.mark.usefixtures("full_compilation")


@pytest.fixture(scope="module")
def batch():
    return make_kst_tiny.example()


def spectrum_of(image):
    return np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho"))


def inverse(spectrum):
    return np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(spectrum), norm="ortho"))


def convolved(x_CxHxW, layer):
    correlate = functools.partial(signal.correlate2d, mode="same")
    kernels = layer["kernel"].transpose(3, 2, 0, 1)
    sums = np.stack([sum(map(correlate, x_CxHxW, kernel)) for kernel in kernels])
    return sums + layer["bias"][:, None, None]


def test_d5c5_is_convolution_and_consistency_in_turn(batch):
    """Both cascades by numpy's own transforms and scipy's correlation."""
    _, params, apply = tiny("d5c5")
    got = apply(params, batch).image
    # One cascade would not do: its input has no values where none were measured, so
    # that the residual connection makes no difference.
    layers = [[params[f"Cascade_{c}"][f"Conv_{n}"] for n in range(3)] for c in (0, 1)]

    for b in range(2):
        spectrum = batch.kspace[b, ..., 0] + 1j * batch.kspace[b, ..., 1]
        image = inverse(spectrum)
        for first, second, last in layers:
            x = np.stack([image.real, image.imag])
            for layer in (first, second):
                x = np.maximum(convolved(x, layer), 0)
            x = convolved(x, last)
            image = image + x[0] + 1j * x[1]
            image = inverse(np.where(batch.mask[b], spectrum, spectrum_of(image)))
        np.testing.assert_allclose(got[b, ..., 0], image.real, atol=1e-4)
        np.testing.assert_allclose(got[b, ..., 1], image.imag, atol=1e-4)


def test_oucr_is_two_recurrent_branches_and_their_fusion(batch):
    """Two iterations of each by scipy's correlation, zoom and largest of patches."""
    _, params, apply = tiny("oucr")
    got = apply(params, batch).image

    def enlarge(x):
        return np.stack(
            [ndimage.zoom(c, 2, order=1, mode="nearest", grid_mode=True) for c in x]
        )

    def halve(x):
        return np.stack([ndimage.maximum_filter(c, 2, origin=-1) for c in x])[
            :, ::2, ::2
        ]

    def relu(x):
        return np.maximum(x, 0)

    for b in range(2):
        measured = batch.kspace[b, ..., 0] + 1j * batch.kspace[b, ..., 1]

        def consistent(x, b=b, measured=measured):
            spectrum = spectrum_of(x[0] + 1j * x[1])
            image = inverse(np.where(batch.mask[b], measured, spectrum))
            return np.stack([image.real, image.imag])

        images = []
        for name, there, back in (("over", enlarge, halve), ("under", halve, enlarge)):
            first, deep, recurrent, shallow, last = (
                params[name][f"Conv_{n}"] for n in range(5)
            )
            image = np.stack([inverse(measured).real, inverse(measured).imag])
            hidden = 0 * convolved(there(np.repeat(image, 2, 0)), deep)
            for _ in range(2):
                x = convolved(there(relu(convolved(image, first))), deep)
                hidden = relu(x + convolved(hidden, recurrent))
                x = relu(convolved(back(hidden), shallow))
                image = consistent(image + convolved(x, last))
            images.append(image)
        x = relu(convolved(np.concatenate(images), params["Conv_0"]))
        image = consistent(sum(images) / 2 + convolved(x, params["Conv_1"]))
        np.testing.assert_allclose(got[b], np.moveaxis(image, 0, -1), atol=1e-4)


def unet_parameters(weights):
    """PyTorch's names and layouts (`make_unet_tiny`) as this library's."""

    def kernel(name):
        return {"kernel": weights[f"{name}.weight"].transpose(2, 3, 1, 0)}

    def block(name):
        return {"Conv_0": kernel(f"{name}.0"), "Conv_1": kernel(f"{name}.3")}

    def enlarge(name):
        w = weights[f"{name}.weight"]  # (in, out, 2, 2)
        return {"Dense_0": {"kernel": w.transpose(0, 2, 3, 1).reshape(len(w), -1)}}

    names = ["down.0", "down.1", "down.2", "up.0", "up.1"]
    return {
        **{f"ConvBlock_{n}": block(name) for n, name in enumerate(names)},
        **{f"Enlarge_{n}": enlarge(f"enlarge.{n}.0") for n in range(2)},
        "Conv_0": {**kernel("last"), "bias": weights["last.bias"]},
    }


@pytest.mark.slow
def test_unet_equals_a_unet_in_pytorch():
    found = np.load(ROOT / "tests" / "references" / "unet_tiny.npz")
    weights, gradients = (
        unet_parameters({k.removeprefix(p): found[k] for k in found.files})
        for p in ("weight/", "gradient/")
    )
    sizes = {"features": 2, "poolings": 2}
    everything = np.ones(found["image"].shape[:3], bool)

    def batch_of(kspace):
        pairs = zip(np.asarray(kspace), everything, strict=True)
        return tokens.batch_of([tokens.tokenise(k, m) for k, m in pairs])

    batch = batch_of(fft2c(found["image"]))

    @jax.jit
    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_of(params):
        image = build(UNetConfig(**sizes)).apply({"params": params}, batch).image
        return jnp.mean(image**2), image

    (_, image), gradient = loss_of(weights)
    np.testing.assert_allclose(image, found["output"], atol=2e-5)
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, atol=1e-4 * np.abs(w).max()),
        gradient,
        gradients,
    )
    apply = jax.jit(build(KUNetConfig(**sizes)).apply)
    image = apply({"params": weights}, batch_of(found["image"])).image
    np.testing.assert_allclose(image, ifft2c(found["output"]), atol=2e-5)


def test_nonlinearity_starts_as_a_soft_threshold():
    layer = PiecewiseLinear(points=101, threshold=0.1)
    x = np.linspace(-2.5, 2.5, 3 * 4001).reshape(-1, 3).astype(np.float32)
    params = layer.init(jax.random.key(0), x)
    wanted = np.sign(x) * np.maximum(np.abs(x) - 0.1, 0)
    np.testing.assert_allclose(layer.apply(params, x), wanted, atol=1e-5)


def test_nonlinearity_is_linear_between_its_points_and_of_slope_1_outside():
    layer, rng = PiecewiseLinear(points=11, threshold=0.1), np.random.default_rng(0)
    values = rng.normal(size=(3, 11)).astype(np.float32)
    x = rng.uniform(-2, 2, size=(50, 3)).astype(np.float32)
    got = layer.apply({"params": {"values": values}}, x)
    for channel in range(3):
        points = np.linspace(-1, 1, 11)
        wanted = np.interp(x[:, channel], points, values[channel])
        wanted += x[:, channel] - np.clip(x[:, channel], -1, 1)
        np.testing.assert_allclose(got[:, channel], wanted, atol=1e-5)


def test_gradients_of_the_nonlinearity_are_differences():
    layer, rng = PiecewiseLinear(points=11, threshold=0.1), np.random.default_rng(0)
    values = rng.normal(size=(2, 11)).astype(np.float32)
    x = rng.uniform(-1.5, 1.5, size=(6, 2)).astype(np.float32)

    def total(values, x):
        out = layer.apply({"params": {"values": values}}, x)
        return jnp.sum(out * jnp.arange(1.0, 13).reshape(6, 2))

    # Steps are too small to cross a point, and between points all is linear.
    test_util.check_grads(total, (values, x), order=1, modes=["rev"], eps=1e-3)


def test_admm_is_the_algorithm(batch):
    """Two iterations and the last reconstruction, with numpy and scipy."""
    _, params, apply = tiny("admm")
    got = apply(params, batch).image
    p, rho = jax.tree.map(np.asarray, params), np.exp(params["log_rho"])
    first, last = (p["Correction_0"][f"Conv_{n}"] for n in (0, 1))
    values = p["Correction_0"]["PiecewiseLinear_0"]["values"]

    def prior(image):
        total = last["bias"][0]
        for n, points in enumerate(values):
            x = signal.correlate2d(image, first["kernel"][..., 0, n], "same")
            x = x + first["bias"][n]
            inner = np.clip(x, -1, 1)
            x = np.interp(inner, np.linspace(-1, 1, 11), points) + x - inner
            total = total + signal.correlate2d(x, last["kernel"][..., n, 0], "same")
        return total

    for b in range(2):
        y, m = batch.kspace[b, ..., 0] + 1j * batch.kspace[b, ..., 1], batch.mask[b]
        z = beta = np.zeros_like(y)
        for _ in range(2):
            x = inverse((y + rho * spectrum_of(z - beta)) / (m + rho))
            z = x + beta
            z = z - prior(z.real) - 1j * prior(z.imag)
            beta = beta + params["rate"] * (x - z)
        x = inverse(np.where(m, y, spectrum_of(z - beta)))
        np.testing.assert_allclose(got[b, ..., 0], x.real, atol=1e-4)
        np.testing.assert_allclose(got[b, ..., 1], x.imag, atol=1e-4)


def test_differences_and_divergence_are_adjoint():
    rng = np.random.default_rng(0)
    image = rng.normal(size=(1, 5, 7, 2)).astype(np.float32)
    field = rng.normal(size=(1, 5, 7, 2, 2)).astype(np.float32)
    got, wanted = np.sum(differences(image) * field), np.sum(image * divergence(field))
    assert float(got) == pytest.approx(-float(wanted), rel=1e-4)
    np.testing.assert_allclose(
        differences(image)[0, :-1, :, :, 0], np.diff(image[0], axis=0), atol=1e-6
    )


@pytest.mark.slow
def test_total_variation_reaches_the_optimum_of_a_convex_solver():
    """On a 5x4 image, against scipy's minimum of the sum as numpy writes it."""
    rng, shape, weight = np.random.default_rng(3), (5, 4), 0.1
    mask = rng.random(shape) < 0.5
    target = np.zeros(shape, complex)
    target[1:4, 1:4] = 1 + 0.5j
    measured = np.where(mask, spectrum_of(target), 0)

    def objective(parts, smoothing=0.0):
        image = (parts[:20] + 1j * parts[20:]).reshape(shape)
        fit = np.sum(np.abs(spectrum_of(image) - measured)[mask] ** 2) / 2
        squares = np.full(shape, smoothing**2)
        squares[:-1] += np.abs(np.diff(image, axis=0)) ** 2
        squares[:, :-1] += np.abs(np.diff(image, axis=1)) ** 2
        return fit + weight * np.sum(np.sqrt(squares))

    def flat(image):
        return np.concatenate([image.real.ravel(), image.imag.ravel()])

    best = flat(inverse(measured))
    # Smoothed by s it has gradients, and is at most 20 s weight above itself.
    for smoothing in (1e-1, 1e-2, 1e-3, 1e-4):
        options = {"maxiter": 2000, "maxfun": 10**6, "ftol": 1e-12}
        best = optimize.minimize(
            objective, best, smoothing, method="L-BFGS-B", options=options
        ).x
    kspace = np.stack([measured.real, measured.imag], -1)[None].astype(np.float32)
    found = np.asarray(minimise(kspace, Acquisition(mask[None]), weight, 3000), float)[
        0
    ]
    found = objective(flat(found[..., 0] + 1j * found[..., 1]))
    assert found == pytest.approx(objective(best), rel=5e-4)
    assert found < 0.9 * objective(flat(inverse(measured)))
