"""Many devices compute what one does, and exchange no more than they must."""

import dataclasses
import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from skimage.metrics import peak_signal_noise_ratio

from kst_jax import fourier, parallel, sampling, tokens
from kst_jax.benchmark import measuring
from kst_jax.data import opening, pipeline
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.models.registry import build
from kst_jax.training import loop, optimizers
from tests import baselines
from tests.references import make_kst_tiny
from tests.test_kst import apply
from tests.test_training import TINY, with_train

pytestmark = pytest.mark.slow

SIZES = {"f32": 4, "s32": 4, "u32": 4, "c64": 8, "pred": 1}


def exchanged(compiled):
    """Bytes that a program's results of collectives hold, by kind of collective."""
    kinds = "all-reduce|all-gather|all-to-all|reduce-scatter|collective-permute"
    found = {}
    for shapes, kind in re.findall(
        rf"= (.*?) ({kinds})(?:-start)?\(", compiled.as_text()
    ):
        arrays = re.findall(r"(\w+)\[([\d,]*)\]", shapes)
        size = sum(
            SIZES[dtype] * np.prod([int(n) for n in shape.split(",") if n], dtype=int)
            for dtype, shape in arrays
        )
        found[kind] = found.get(kind, 0) + int(size)
    return found


def three_steps(devices, accumulate):
    """The compiled step, and after three of them state, scalars and last gradient."""
    config, mesh = with_train(accumulate=accumulate), parallel.make_mesh(devices)
    model = KSpaceTransformer(config.model)
    optimizer = optax.chain(
        optax.trace(decay=0.0),  # holds the gradient
        optimizers.make_optimizer(config.train, model),
    )
    source, _ = opening.open_sources(config)
    stream = pipeline.training_batches(source, config, opening.open_sampler(config))
    batches = [parallel.shard(next(stream), mesh) for _ in range(3)]
    state = loop.init_state(model, optimizer, batches[0], config.train)
    state, rows = parallel.replicate(state, mesh), []
    first = jax.device_get((state.params, batches[0]))
    step = loop.make_step(model, optimizer, config.train, "RM", mesh)
    step = step.lower(state, batches[0]).compile()
    for batch in batches:
        state, scalars, _ = step(state, batch)
        rows.append(scalars)
    found = {
        "params": state.params,
        "gradient": state.optimizer[0].trace,
        "scalars": rows,
    }
    return step, jax.device_get(found), first


@pytest.fixture(scope="module")
def one_device():
    return three_steps(1, 1)


def test_psnr_in_training_is_scikit_images(one_device):
    _, found, (params, batch) = one_device
    image = apply(KSpaceTransformer(TINY.model), params, batch).image
    scores = [
        peak_signal_noise_ratio(target, made, data_range=np.ptp(target))
        for made, target in zip(
            *(np.hypot(*np.moveaxis(x, -1, 0)) for x in (image, batch.image)),
            strict=True,
        )
    ]
    assert found["scalars"][0]["psnr"] == pytest.approx(np.mean(scores), abs=1e-4)


@pytest.mark.parametrize(("devices", "accumulate"), [(8, 1), (2, 4)])
def test_many_devices_and_micro_batches_train_as_one(one_device, devices, accumulate):
    step, many, _ = three_steps(devices, accumulate)
    _, one, _ = one_device
    for name, wanted in one.items():
        for x, y in zip(
            jax.tree.leaves(wanted), jax.tree.leaves(many[name]), strict=True
        ):
            np.testing.assert_allclose(
                x, y, rtol=1e-5, atol=1e-5 * np.abs(x).max(), err_msg=name
            )
    sizes = [x.nbytes for x in jax.tree.leaves(one["gradient"])]
    moved = exchanged(step)
    assert set(moved) == {"all-reduce"}
    assert sum(sizes) <= moved["all-reduce"] <= sum(sizes) + 16  # loss and PSNR
    before_main = step.as_text().partition("\nENTRY")[0]
    assert "all-reduce(" not in before_main  # that is, in no loop


def transform_of(images, mesh, kind):
    """A compiled Fourier transform of a batch that is spread over devices."""
    if kind == "mapped":
        sharded = parallel.SHARDED
        transform = parallel.map_over_devices(fourier.fft2c, mesh, sharded, sharded)
    elif kind == "not mapped":
        transform = jax.jit(fourier.fft2c)
    else:
        everywhere = jax.sharding.NamedSharding(mesh, parallel.REPLICATED)
        transform = jax.jit(fourier.fft2c, out_shardings=everywhere)
    return transform.lower(images).compile()


# Later compilers split the transform over the batch by themselves.
GATHERS = jax.__version_info__ < (0, 11)


@pytest.mark.parametrize(
    ("kind", "gathers"),
    [("mapped", False), ("not mapped", GATHERS), ("wanted everywhere", True)],
)
def test_a_mapped_fourier_transform_gathers_no_batch(kind, gathers):
    mesh = parallel.make_mesh(8)
    images = parallel.shard(np.zeros((8, 16, 16, 2), np.float32), mesh)
    moved = exchanged(transform_of(images, mesh, kind))
    assert set(moved) == ({"all-gather"} if gathers else set())
    assert not gathers or moved["all-gather"] >= images.nbytes


def test_accelerators_round_no_factor_in_training():
    config = dataclasses.replace(TINY.model, attention="blocked")
    model, mesh = KSpaceTransformer(config), parallel.make_mesh(8)
    optimizer = optax.sgd(1.0)
    example = pipeline.example_batch(TINY, opening.open_sampler(TINY))
    batch = jax.tree.map(lambda x: np.repeat(x, 8, axis=0), example)
    state = jax.eval_shape(
        lambda: loop.init_state(model, optimizer, example, TINY.train)
    )
    step = loop.make_step(model, optimizer, TINY.train, "RM", mesh)
    text = step.trace(state, batch).lower(lowering_platforms=("tpu",)).as_text()
    assert len(products(text)) > 50
    assert not [line for line in products(text) if "HIGHEST" not in line]


@pytest.mark.parametrize("name", ["kst", *baselines.TINY])
def test_accelerators_round_no_factor_of_any_network(name):
    config = baselines.TINY.get(name, TINY.model)
    batch = measuring.example(dataclasses.replace(TINY, model=config), 1)
    model = build(config)
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    traced = jax.jit(model.reconstruct).trace(params, batch)
    text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert products(text) or name in ("tv", "sense")
    assert not [line for line in products(text) if "HIGHEST" not in line]


def products(text):
    return re.findall(r"stablehlo\.(?:dot_general|convolution).*", text)


def some_slices(mask_config, patch, count):
    size = (16, 12)
    sampler, rng = sampling.sampler(mask_config, size), np.random.default_rng(0)
    slices = [
        tokens.tokenise(
            rng.normal(size=(*size, 2)).astype(np.float32),
            sampler.random(rng),
            sampler.layout(patch),
        )
        for _ in range(count)
    ]
    return tokens.batch_of(slices, patch=patch)


@pytest.mark.parametrize(
    ("mask", "patch", "remainder"),
    [
        (MaskConfig(acceleration=3.3), (1, 1), 2),
        (MaskConfig(kind="fastmri_random", acceleration=3.0), (1, 1), 0),
        (MaskConfig(acceleration=3.3), (3, 2), 0),
        (MaskConfig(kind="uniform_1d", acceleration=4.0), (7, 1), 3),
    ],
)
def test_devices_share_the_queries_of_a_slice(mask, patch, remainder):
    config = dataclasses.replace(TINY.model, hr_layers=2, lr_size=(8, 6), patch=patch)
    batch, model = some_slices(mask, patch, 2), KSpaceTransformer(config)
    queries = batch.query.shape[1]
    assert queries % 4 == remainder
    params = make_kst_tiny.weights(model, batch)
    decoded = []

    def decode(params, batch):
        output, state = model.clone(query_axis=parallel.QUERY).apply(
            {"params": params}, batch, mutable=["intermediates"]
        )
        attention = state["intermediates"]["hr_decoder"]["cross_attention"]
        ((q_SxBxMxKxC, _),) = attention["query_key"]
        decoded.append(q_SxBxMxKxC.shape[1:3])
        return output.image, output.supervised["kspace"][-1]

    mesh = parallel.make_mesh(2, query_devices=4)
    shared = parallel.map_over_devices(
        decode, mesh, (parallel.REPLICATED, parallel.SHARDED), parallel.SHARDED
    )
    found = shared(parallel.replicate(params, mesh), parallel.shard(batch, mesh))
    assert decoded == [(1, -(-queries // 4))]
    wanted = apply(model, params, batch)
    for one, other in zip(
        (wanted.image, wanted.supervised["kspace"][-1]), found, strict=True
    ):
        np.testing.assert_allclose(one, other, atol=1e-5 * jnp.abs(one).max())


@pytest.mark.parametrize(
    ("slices", "query_devices", "shape"),
    [
        (8, 1, (8, 1)),
        (16, 1, (8, 1)),
        (4, 1, (4, 1)),
        (6, 1, (2, 1)),
        (5, 1, (1, 1)),
        (4, 4, (2, 4)),
        (1, 8, (1, 8)),
    ],
)
def test_slices_take_the_devices_that_share_them_evenly(slices, query_devices, shape):
    assert parallel.make_mesh(slices, query_devices).devices.shape == shape


def test_idle_devices_are_told(capsys):
    for slices, query_devices in ((6, 1), (8, 1), (1, 4), (2, 4)):
        mesh = parallel.make_mesh(slices, query_devices)
        parallel.warn_of_idle_devices(mesh, "eval.batch_size", slices)
    six, one = capsys.readouterr().err.splitlines()
    assert "2 of 8 devices" in six
    assert "eval.batch_size=6" in six
    assert "multiple of 8" in six
    assert "4 of 8 devices" in one
    assert "multiple of 2" in one


def test_devices_that_cannot_share_queries_are_refused():
    with pytest.raises(InputError, match=r"query_devices=3 does not divide the 8"):
        parallel.make_mesh(8, 3)
