"""The networks that the paper compares with: references, properties, command lines."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import test_util
from scipy import ndimage, optimize, signal

from kst_jax import benchmark, losses, parallel, speed, tokens, training
from kst_jax.config import Config, DataConfig, TrainConfig
from kst_jax.errors import InputError
from kst_jax.fourier import fft2c, ifft2c
from kst_jax.models.admm import ADMMConfig, PiecewiseLinear
from kst_jax.models.d5c5 import D5C5Config
from kst_jax.models.oucr import OUCRConfig
from kst_jax.models.registry import build
from kst_jax.models.tv import TVConfig, differences, divergence, minimise
from kst_jax.models.unet import KUNetConfig, UNetConfig
from tests.conftest import ROOT
from tests.references import make_kst_tiny

TINY = {
    "d5c5": D5C5Config(cascades=2, layers=3, features=4),
    "unet": UNetConfig(features=2, poolings=1),
    "kunet": KUNetConfig(features=2, poolings=1, consistent=True),
    "oucr": OUCRConfig(iterations=2, features=4, under_levels=1, refinement_layers=1),
    "admm": ADMMConfig(iterations=2, features=4, points=11),
    "tv": TVConfig(iterations=20),
}
CONSISTENT = ("d5c5", "kunet", "oucr", "admm")


@pytest.fixture(scope="module")
def batch():
    return make_kst_tiny.example()


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


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (D5C5Config(features=32), 144_650),
        (D5C5Config(), 565_770),
        (D5C5Config(features=128), 2_237_450),
        (UNetConfig(), 7_756_418),
        (KUNetConfig(), 7_756_418),
        (OUCRConfig(), 1_193_702),  # published: about 1.2 million
        # 5x5 filters there and back with biases, control points, rho and rate
        (ADMMConfig(), 128 * 26 + 128 * 101 + 128 * 25 + 1 + 2),
        (TVConfig(), 1),
    ],
)
def test_parameters_are_as_many_as_published(config, wanted):
    slices = [tokens.tokenise(np.ones((48, 48, 2), np.float32), np.eye(48) > 0)]
    shapes = jax.eval_shape(
        build(config).init, jax.random.key(0), tokens.batch_of(slices)
    )
    assert sum(x.size for x in jax.tree.leaves(shapes)) == wanted


@pytest.mark.parametrize("name", ["d5c5", "unet", "oucr", "admm", "tv"])
def test_a_step_over_devices_has_the_whole_gradient(name, batch):
    model, params, _ = tiny(name)
    config = TrainConfig(domain="image", batch_size=2)

    @jax.jit
    def plain(params):
        def loss_of(params):
            output = model.apply({"params": params}, batch)
            return losses.loss(output, jnp.asarray(batch.image), config, "RM")

        return jax.value_and_grad(loss_of)(params)

    loss, gradient = plain(params)
    for path, g in jax.tree.leaves_with_path(gradient):
        assert np.abs(g).max() > 0, jax.tree_util.keystr(path)
    mesh = parallel.make_mesh(2)
    assert mesh.size == 2
    optimizer = training.make_optimizer(config, model)
    step = training.make_step(model, optimizer, config, "RM", mesh)
    state = training.State(jnp.zeros((), int), params, None, optimizer.init(params))
    _, scalars, _ = step(parallel.replicate(state, mesh), parallel.shard(batch, mesh))
    assert float(scalars["loss"]) == pytest.approx(float(loss), rel=1e-5)
    norm = np.sqrt(sum(np.sum(np.square(g)) for g in jax.tree.leaves(gradient)))
    assert float(scalars["gradient_norm"]) == pytest.approx(norm, rel=1e-4)


@pytest.mark.parametrize("name", TINY)
def test_images_are_of_the_kspace_alone(name, batch):
    """Neither the target nor another slice of the batch has a say."""
    _, params, apply = tiny(name)
    image = apply(params, batch).image
    assert image.shape == batch.image.shape
    other = jax.tree.map(lambda x: x[::-1], batch).replace(image=batch.image * 0)
    np.testing.assert_allclose(apply(params, other).image[::-1], image, atol=1e-5)


@pytest.mark.parametrize("name", CONSISTENT)
def test_measured_values_stay(name, batch):
    _, params, apply = tiny(name)
    image = apply(params, batch).image
    spectrum = np.asarray(fft2c(image))
    np.testing.assert_allclose(
        spectrum[batch.mask], batch.kspace[batch.mask], atol=1e-5
    )
    assert np.abs(spectrum[~batch.mask]).max() > 1e-2
    full = batch.replace(
        kspace=np.asarray(fft2c(batch.image)), mask=np.ones_like(batch.mask)
    )
    np.testing.assert_allclose(apply(params, full).image, batch.image, atol=1e-5)


@pytest.mark.parametrize("name", ["d5c5", "unet", "oucr", "admm"])
def test_bfloat16_stays_close(name, batch):
    _, params, apply = tiny(name)
    wanted = apply(params, batch).image
    model = build(type(TINY[name])(**{**vars(TINY[name]), "dtype": "bfloat16"}))
    got = jax.jit(model.apply)({"params": params}, batch).image
    assert got.dtype == jnp.float32
    difference = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert 1e-7 < difference < 0.05


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
    found = np.asarray(minimise(kspace, mask[None], weight, 3000), float)[0]
    found = objective(flat(found[..., 0] + 1j * found[..., 1]))
    assert found == pytest.approx(objective(best), rel=5e-4)
    assert found < 0.9 * objective(flat(inverse(measured)))


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match=r"model\.features=0 must be at least 1"):
        D5C5Config(features=0)
    with pytest.raises(InputError, match=r"model\.kernel=4 must be odd"):
        D5C5Config(kernel=4)
    with pytest.raises(InputError, match=r"\(48, 24\).*poolings=4.*at least 32"):
        UNetConfig().require_size((48, 24))
    with pytest.raises(InputError, match=r"\(48, 30\).*multiples of 4"):
        OUCRConfig().require_size((48, 30))
    with pytest.raises(InputError, match=r"model\.kernel=2 must be odd"):
        ADMMConfig(kernel=2)
    with pytest.raises(InputError, match=r"model\.points=1 must be at least 2"):
        ADMMConfig(points=1)
    with pytest.raises(InputError, match=r"model\.rho=0.0 must be above 0"):
        ADMMConfig(rho=0.0)
    with pytest.raises(InputError, match=r"model\.weight=0.0 must be above 0"):
        TVConfig(weight=0.0)


def run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_command_line_trains_and_evaluates(tmp_path):
    flags = [
        "--config=configs/d5c5.py",
        f"--workdir={tmp_path}",
        "--config.data.train=demo:train",
        "--config.data.test=demo:test",
        "--config.data.size=(16,16)",
        "--config.data.crop=(176,176)",
        "--config.data.pad=True",
        "--config.data.slices=(0.4,0.5)",
        "--config.model.cascades=2",
        "--config.model.features=4",
        "--config.train.steps=3",
        "--config.train.batch_size=4",
        "--config.train.image_every=0",
    ]
    run("train.py", *flags)
    assert "reconstruction" in run("eval.py", *flags)
    report = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert report["step"] == 3
    assert (tmp_path / "eval" / "figures" / "reconstructions.png").exists()


def test_benchmark_measures_a_network_without_attention(monkeypatch):
    monkeypatch.setattr(speed, "_MATRIX", 64)
    config = Config(data=DataConfig(size=(16, 16)), model=TINY["d5c5"])
    case = speed.Case("forward", config, batch=2, calls=1)
    row = speed.summary(case, [speed.measure(case)])
    assert "| forward | 16x16 | 2 | float32 | - |" in benchmark.table([row])


def test_operations_are_the_convolutions():
    config = Config(data=DataConfig(size=(32, 32)), model=D5C5Config(features=32))
    # Two for each of 9 taps of 5 cascades; beyond the edge there are none, but
    # Fourier transforms and activations count as well.
    taps = 5 * 9 * (2 * 32 + 3 * 32 * 32 + 32 * 2)
    share = speed.Case("forward", config).flops / (2 * 32 * 32 * taps)
    assert 0.95 < share < 1.1
