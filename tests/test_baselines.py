"""The networks that the paper compares with: what all share, and command lines."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax import parallel, tokens
from kst_jax.benchmark import measuring
from kst_jax.benchmark.command import table
from kst_jax.config import Config, TrainConfig
from kst_jax.data_config import DataConfig
from kst_jax.errors import InputError
from kst_jax.fourier import fft2c
from kst_jax.models.admm import ADMMConfig
from kst_jax.models.d5c5 import D5C5Config
from kst_jax.models.oucr import OUCRConfig
from kst_jax.models.registry import build
from kst_jax.models.sense import SENSEConfig
from kst_jax.models.tv import TVConfig
from kst_jax.models.unet import KUNetConfig, UNetConfig
from kst_jax.training import loop, losses, optimizers
from tests.baselines import TINY, tiny
from tests.programs import run_here
from tests.references import make_kst_tiny

pytestmark = pytest.mark.slow

CONSISTENT = ("d5c5", "kunet", "oucr", "admm")


@pytest.fixture(scope="module")
def batch():
    return make_kst_tiny.example()


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
        (SENSEConfig(), 1),
    ],
)
def test_parameters_are_as_many_as_published(config, wanted):
    slices = [tokens.tokenise(np.ones((48, 48, 2), np.float32), np.eye(48) > 0)]
    shapes = jax.eval_shape(
        build(config).init, jax.random.key(0), tokens.batch_of(slices)
    )
    assert sum(x.size for x in jax.tree.leaves(shapes)) == wanted


@pytest.mark.parametrize(
    "name", ["d5c5", "unet", "oucr", "admm", "tv", "sense", "varnet"]
)
def test_a_step_over_devices_has_the_whole_gradient(name, batch):
    model, params, _ = tiny(name)
    config = TrainConfig(domain="image", batch_size=2)

    @jax.jit
    def plain(params):
        def loss_of(params):
            output = model.apply({"params": params}, batch)
            return losses.loss(output, batch, config, "RM")

        return jax.value_and_grad(loss_of)(params)

    loss, gradient = plain(params)
    for path, g in jax.tree.leaves_with_path(gradient):
        assert np.abs(g).max() > 0, jax.tree_util.keystr(path)
    mesh = parallel.make_mesh(2)
    assert mesh.size == 2
    optimizer = optimizers.make_optimizer(config, model)
    step = loop.make_step(model, optimizer, config, "RM", mesh)
    state = loop.State(jnp.zeros((), int), params, None, optimizer.init(params))
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


@pytest.mark.parametrize("name", ["d5c5", "unet", "oucr", "admm", "varnet"])
def test_bfloat16_stays_close(name, batch):
    _, params, apply = tiny(name)
    wanted = apply(params, batch).image
    model = build(type(TINY[name])(**{**vars(TINY[name]), "dtype": "bfloat16"}))
    got = jax.jit(model.apply)({"params": params}, batch).image
    assert got.dtype == jnp.float32
    difference = np.linalg.norm(got - wanted) / np.linalg.norm(wanted)
    assert 1e-7 < difference < 0.05


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match=r"model\.features=0 .* must be at least 1"):
        D5C5Config(features=0)
    with pytest.raises(InputError, match=r"model\.kernel=4 .* must be odd"):
        D5C5Config(kernel=4)
    with pytest.raises(InputError, match=r"\(48, 24\).*poolings=4.*at least 32"):
        UNetConfig().require_size((48, 24))
    with pytest.raises(InputError, match=r"\(48, 30\).*multiples of 4"):
        OUCRConfig().require_size((48, 30))
    with pytest.raises(InputError, match=r"model\.kernel=2 .* must be odd"):
        ADMMConfig(kernel=2)
    with pytest.raises(InputError, match=r"model\.points=1 .* must be at least 2"):
        ADMMConfig(points=1)
    with pytest.raises(InputError, match=r"model\.rho=0.0 .* must be above 0"):
        ADMMConfig(rho=0.0)
    with pytest.raises(InputError, match=r"model\.weight=0.0 .* must be above 0"):
        TVConfig(weight=0.0)


def test_command_line_trains_and_evaluates(tmp_path):
    flags = [
        "--config=d5c5",
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
    for program in ("train.py", "eval.py"):
        done = run_here(program, *flags)
        assert done.returncode == 0, done.stderr
    assert "reconstruction" in done.stdout
    report = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert report["step"] == 3
    assert (tmp_path / "eval" / "figures" / "reconstructions.png").exists()


def test_benchmark_measures_a_network_without_attention(monkeypatch):
    monkeypatch.setattr(measuring, "_MATRIX", 64)
    config = Config(data=DataConfig(size=(16, 16)), model=TINY["d5c5"])
    case = measuring.Case("forward", config, batch=2, calls=1)
    row = measuring.summary(case, [measuring.measure(case)])
    assert "| forward | 16x16 | 2 | float32 | - |" in table([row])


def test_operations_are_the_convolutions():
    config = Config(data=DataConfig(size=(32, 32)), model=D5C5Config(features=32))
    # Two for each of 9 taps of 5 cascades; beyond the edge there are none, but
    # Fourier transforms and activations count as well.
    taps = 5 * 9 * (2 * 32 + 3 * 32 * 32 + 32 * 2)
    share = measuring.Case("forward", config).flops / (2 * 32 * 32 * taps)
    assert 0.95 < share < 1.1
