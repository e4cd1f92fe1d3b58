"""The networks that the paper compares with: references, properties, command lines."""

import functools
import json
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import signal

from kst_jax import losses, parallel, tokens, training
from kst_jax.config import TrainConfig
from kst_jax.errors import InputError
from kst_jax.fourier import fft2c, ifft2c
from kst_jax.models.d5c5 import D5C5Config
from kst_jax.models.registry import build
from kst_jax.models.unet import KUNetConfig, UNetConfig
from tests.conftest import ROOT
from tests.references import make_kst_tiny

TINY = {
    "d5c5": D5C5Config(cascades=2, layers=3, features=4),
    "unet": UNetConfig(features=2, poolings=2),
    "kunet": KUNetConfig(features=2, poolings=2, consistent=True),
}
CONSISTENT = ("d5c5", "kunet")


@pytest.fixture(scope="module")
def batch():
    return make_kst_tiny.example()


@functools.cache
def tiny(name, **changes):
    """A network, parameters moved off their start, and its compiled forward pass."""
    model = build(type(TINY[name])(**{**vars(TINY[name]), **changes}))
    params = jax.jit(model.init)(jax.random.key(1), make_kst_tiny.example())["params"]
    leaves, tree = jax.tree.flatten(params)
    keys = jax.random.split(jax.random.key(2), len(leaves))
    leaves = [
        x + 0.02 * jax.random.normal(k, x.shape)
        for x, k in zip(leaves, keys, strict=True)
    ]
    apply = jax.jit(lambda params, batch: model.apply({"params": params}, batch))
    return model, jax.tree.unflatten(tree, leaves), apply


@pytest.mark.parametrize(
    ("config", "wanted"),
    [
        (D5C5Config(features=32), 144_650),
        (D5C5Config(), 565_770),
        (D5C5Config(features=128), 2_237_450),
        (UNetConfig(), 7_756_418),
        (KUNetConfig(), 7_756_418),
    ],
)
def test_parameters_are_as_many_as_published(config, wanted):
    slices = [tokens.tokenise(np.ones((48, 48, 2), np.float32), np.eye(48) > 0)]
    shapes = jax.eval_shape(
        build(config).init, jax.random.key(0), tokens.batch_of(slices)
    )
    assert sum(x.size for x in jax.tree.leaves(shapes)) == wanted


@pytest.mark.parametrize("name", TINY)
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
    state = training.init_state(model, optimizer, batch, config).replace(params=params)
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


@pytest.mark.parametrize("name", TINY)
def test_bfloat16_stays_close(name, batch):
    _, params, apply = tiny(name)
    wanted = apply(params, batch).image
    model = build(type(TINY[name])(**{**vars(TINY[name]), "dtype": "bfloat16"}))
    got = jax.jit(model.apply)({"params": params}, batch).image
    assert got.dtype == jnp.float32
    difference = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert 1e-7 < difference < 0.05


def test_d5c5_is_convolution_and_consistency_in_turn(batch):
    """The first cascade by numpy's own transforms and scipy's correlation."""
    _, params, _ = tiny("d5c5")
    one = build(D5C5Config(cascades=1, layers=3, features=4))
    cascade = jax.tree.map(np.asarray, params["Cascade_0"])
    got = one.apply({"params": {"Cascade_0": cascade}}, batch).image
    axes = {"axes": (0, 1)}
    for b in range(2):
        spectrum = batch.kspace[b, ..., 0] + 1j * batch.kspace[b, ..., 1]
        image = np.fft.fftshift(
            np.fft.ifft2(np.fft.ifftshift(spectrum), norm="ortho", **axes)
        )
        x = np.stack([image.real, image.imag])
        for n in range(3):
            kernel, bias = (cascade[f"Conv_{n}"][key] for key in ("kernel", "bias"))
            maps = [
                sum(map(functools.partial(signal.correlate2d, mode="same"), x, k))
                for k in kernel.transpose(3, 2, 0, 1)
            ]
            x = np.stack(maps) + bias[:, None, None]
            x = np.maximum(x, 0) if n < 2 else x
        image = image + x[0] + 1j * x[1]
        found = np.fft.fftshift(np.fft.fft2(np.fft.ifftshift(image), norm="ortho"))
        found = np.where(batch.mask[b], spectrum, found)
        image = np.fft.fftshift(np.fft.ifft2(np.fft.ifftshift(found), norm="ortho"))
        np.testing.assert_allclose(got[b, ..., 0], image.real, atol=1e-5)
        np.testing.assert_allclose(got[b, ..., 1], image.imag, atol=1e-5)


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


@pytest.mark.parametrize("name", ["unet", "kunet"])
def test_unet_equals_a_unet_in_pytorch(name):
    found = np.load(ROOT / "tests" / "references" / "unet_tiny.npz")
    weights, gradients = (
        unet_parameters({k.removeprefix(p): found[k] for k in found.files})
        for p in ("weight/", "gradient/")
    )
    model = build(type(TINY[name])(features=2, poolings=2))
    kunet = name == "kunet"
    kspace = found["image"] if kunet else np.asarray(fft2c(found["image"]))
    mask = np.ones(kspace.shape[:3], bool)
    slices = [tokens.tokenise(k, m) for k, m in zip(kspace, mask, strict=True)]
    batch = tokens.batch_of(slices)

    @functools.partial(jax.value_and_grad, has_aux=True)
    def loss_of(params):
        image = model.apply({"params": params}, batch).image
        return jnp.mean(image**2), image

    (_, image), gradient = jax.jit(loss_of)(weights)
    wanted = ifft2c(found["output"]) if kunet else found["output"]
    np.testing.assert_allclose(image, wanted, atol=2e-5)
    jax.tree.map(
        lambda g, w: np.testing.assert_allclose(g, w, atol=1e-4 * np.abs(w).max()),
        gradient,
        gradients,
    )


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match=r"model\.features=0 must be at least 1"):
        D5C5Config(features=0)
    with pytest.raises(InputError, match=r"model\.kernel=4 must be odd"):
        D5C5Config(kernel=4)
    with pytest.raises(InputError, match=r"\(48, 24\).*poolings=4.*at least 32"):
        UNetConfig().require_size((48, 24))


def run(*arguments):
    command = [sys.executable, *map(str, arguments)]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_command_line_trains_evaluates_and_measures(tmp_path):
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
    table = run("-m", "kst_jax.benchmark", *flags, "--what=forward", "--calls=1")
    assert "| forward | 16x16 | 1 | float32 | - |" in table
