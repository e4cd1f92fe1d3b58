"""The network: its options and its properties."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax import tokens
from kst_jax.config import TrainConfig
from kst_jax.errors import InputError
from kst_jax.fourier import fft2c
from kst_jax.models import blocks
from kst_jax.models.attention_maps import attention_maps, attention_on_grid
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import KSpaceTransformer, reconstruct_slice
from kst_jax.patches import Layout
from kst_jax.training.losses import loss
from tests.references import make_kst_tiny

TINY = make_kst_tiny.CONFIG


def relative(got, wanted):
    return np.linalg.norm(np.asarray(got) - wanted) / np.linalg.norm(wanted)


@functools.partial(jax.jit, static_argnames=("model", "stage"))
def apply(model, params, batch, stage="RM"):
    return model.apply({"params": params}, batch, stage=stage)


def tiny(**changes):
    config = KSTConfig(**{**vars(TINY), **changes})
    model, batch = KSpaceTransformer(config), make_kst_tiny.example()
    return model, make_kst_tiny.weights(model, batch), batch


def test_outputs_equal_the_bundled_reference():
    wanted = np.load(make_kst_tiny.PATH)
    found = make_kst_tiny.outputs()
    assert sorted(found) == sorted(wanted.files)
    for name, value in found.items():
        bound = 1e-4 if name in ("losses", "gradient_norms") else 1e-5
        assert relative(value, wanted[name]) < bound, name


def test_paper_size_has_the_authors_parameters():
    batch = tokens.batch_of(
        [tokens.tokenise(np.ones((128, 128, 2), np.float32), np.eye(128) > 0)]
    )
    model = KSpaceTransformer(KSTConfig())
    params = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    assert sum(x.size for x in jax.tree.leaves(params)) == 13_567_008


def test_measured_values_survive_every_layer():
    model, params, batch = tiny()
    output = apply(model, params, batch)
    for name in ("kspace", "refined"):
        for image in output.supervised[name]:
            spectrum = np.asarray(fft2c(image))
            np.testing.assert_allclose(
                spectrum[batch.mask], batch.kspace[batch.mask], atol=1e-5
            )


def test_padded_tokens_change_nothing():
    model, params, batch = tiny()
    slices = zip(np.asarray(batch.kspace), np.asarray(batch.mask), strict=True)
    counts = np.asarray(batch.mask).sum(axis=(1, 2))
    layout = Layout(int(counts.min()) - 5, int(counts.max()) + 9)
    padded = tokens.batch_of([tokens.tokenise(k, m, layout) for k, m in slices])
    assert padded.value.shape[1] > batch.value.shape[1]
    wanted = apply(model, params, batch).image
    # what stands in the padding must not matter
    padded = padded.replace(
        value=np.where(padded.valid[..., None], padded.value, np.float32(1e3))
    )
    got = apply(model, params, padded).image
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_order_of_tokens_does_not_matter():
    model, params, batch = tiny()
    order = np.random.default_rng(0).permutation(batch.value.shape[1])
    shuffled = batch.replace(
        value=batch.value[:, order], position=batch.position[:, order]
    )
    np.testing.assert_allclose(
        apply(model, params, shuffled).image,
        apply(model, params, batch).image,
        atol=2e-5,
    )


@pytest.mark.parametrize("lr_decoder", [True, False])
@pytest.mark.parametrize("refinement", [True, False])
def test_ablations(lr_decoder, refinement):
    model, params, batch = tiny(lr_decoder=lr_decoder, refinement=refinement)
    assert ("lr_decoder" in params) == lr_decoder
    assert ("refinement" in params["hr_decoder"]) == refinement
    output = apply(model, params, batch)
    assert ("lr" in output.supervised) == lr_decoder
    assert ("refined" in output.supervised) == refinement
    assert model.stages == tuple(
        s for s, has in (("LR", lr_decoder), ("K", True), ("RM", refinement)) if has
    )
    assert (output.upsampled is not None) == lr_decoder


def test_a_residual_head_that_says_nothing_keeps_the_spectrum():
    """A layer then passes on what refinement before it, or upsampling, gave."""
    model, params, batch = tiny(residual_spectrum=0.1)
    head = params["hr_decoder"]["head"]["mlp"]["output"]
    params["hr_decoder"]["head"]["mlp"]["output"] = jax.tree.map(jnp.zeros_like, head)
    output = apply(model, params, batch)
    before = [output.upsampled, *output.supervised["refined"][:-1]]
    for image, kspace in zip(before, output.supervised["kspace"], strict=True):
        kept = batch.acquisition.fill(fft2c(image), batch.kspace)
        np.testing.assert_allclose(fft2c(kspace), kept, atol=1e-5)


def test_a_residual_is_in_units_of_its_option():
    model, params, batch = tiny(residual_spectrum=0.1, refinement=False, hr_layers=1)
    by = {}
    for unit in (0.1, 0.2):
        changed = dataclasses.replace(model.config, residual_spectrum=unit)
        output = apply(KSpaceTransformer(changed), params, batch)
        by[unit] = fft2c(output.image - output.upsampled)
    unsampled = ~np.asarray(batch.mask)
    assert np.abs(by[0.1][unsampled]).max() > 1e-3
    np.testing.assert_allclose(by[0.2][unsampled], 2 * by[0.1][unsampled], atol=1e-5)


def test_a_shared_refinement_is_that_of_every_layer():
    model, params, batch = tiny(shared_refinement=True)
    shared = params.pop("refinement")
    assert "refinement" not in params["hr_decoder"]
    repeated = jax.tree.map(lambda x: jnp.stack([x] * model.config.hr_layers), shared)
    params["hr_decoder"]["refinement"] = repeated
    own = KSpaceTransformer(dataclasses.replace(model.config, shared_refinement=False))
    wanted = apply(own, params, batch).image
    del params["hr_decoder"]["refinement"]
    got = apply(model, params | {"refinement": shared}, batch).image
    np.testing.assert_allclose(got, wanted, atol=1e-6)


def test_log_magnitude_keeps_phases_and_has_gradients_everywhere():
    value = np.random.default_rng(0).normal(size=(50, 2)).astype("f4")
    value *= 10.0 ** np.arange(-4, 4).repeat(7)[:50, None]
    value[0] = 0
    wanted = value[:, 0] + 1j * value[:, 1]
    wanted = np.log1p(np.abs(wanted)) * np.exp(1j * np.angle(wanted))
    got = blocks.log_magnitude(jnp.asarray(value))
    np.testing.assert_allclose(got[:, 0] + 1j * got[:, 1], wanted, rtol=1e-3, atol=1e-6)
    slope = jax.grad(lambda v: blocks.log_magnitude(v).sum())(jnp.asarray(value))
    assert np.isfinite(slope).all()


@pytest.mark.parametrize("shared", [False, True])
def test_every_parameter_belongs_to_the_first_stage_that_uses_it(shared):
    model, params, batch = tiny(shared_refinement=shared)
    paths, leaves = zip(*jax.tree.leaves_with_path(params), strict=True)
    rest = dict(enumerate(paths))
    for stage in ("LR", "K", "RM"):
        before = apply(model, params, batch, stage=stage).supervised
        for number, path in list(rest.items()):
            changed = [
                x * 1.5 + 0.1 if n == number else x for n, x in enumerate(leaves)
            ]
            changed = jax.tree.unflatten(jax.tree.structure(params), changed)
            after = apply(model, changed, batch, stage=stage).supervised
            same = jax.tree.map(np.array_equal, before, after)
            if not all(jax.tree.leaves(same)):
                assert model.introduced_in(path) == stage, jax.tree_util.keystr(path)
                del rest[number]
    assert not rest


@pytest.mark.slow
def test_any_grid_can_be_reconstructed():
    model, params, batch = tiny()
    kspace, mask = np.asarray(batch.kspace[0]), np.asarray(batch.mask[0])
    same = reconstruct_slice(model, params, kspace, mask)
    np.testing.assert_allclose(
        same.image[0], apply(model, params, batch).image[0], atol=2e-5
    )
    with pytest.raises(InputError, match="nothing left to reconstruct"):
        reconstruct_slice(model, params, kspace, np.ones_like(mask))
    fine = reconstruct_slice(model, params, kspace, mask, grid=(23, 31))
    assert fine.image.shape == (1, 23, 31, 2)
    spectrum = np.asarray(fft2c(fine.image))[0, ::2, ::2]
    np.testing.assert_allclose(spectrum[mask], kspace[mask], atol=1e-5)


def test_attention_maps_are_the_softmax_that_the_layers_apply():
    model, params, batch = tiny()
    maps = attention_maps(model, params, batch, {"encoder": 3, "hr_decoder": 5})
    samples = batch.value.shape[1]
    assert maps["encoder"].shape == (2, 2, 2, samples)
    assert maps["hr_decoder"].shape == (2, 2, 2, 4 * 8)
    for weights in maps.values():
        np.testing.assert_allclose(weights.sum(axis=-1), 1, atol=1e-5)
    # by hand, for the first encoder layer
    p = jax.tree.map(lambda x: np.asarray(x[0]), params["encoder"]["self_attention"])
    hidden = params["embed_token"]
    x = np.maximum(
        batch.value @ hidden["hidden"]["kernel"] + hidden["hidden"]["bias"], 0
    )
    x = x @ hidden["output"]["kernel"] + hidden["output"]["bias"]
    x = x + encoding_by_hand(np.asarray(batch.position), 8)
    x = (x - x.mean(-1, keepdims=True)) / np.sqrt(x.var(-1, keepdims=True) + 1e-6)
    x = x * p["norm"]["scale"] + p["norm"]["bias"]
    q, k = ((x @ p[n]["kernel"]).reshape(2, samples, 2, 4) for n in ("query", "key"))
    scores = np.einsum("bkc,blkc->bkl", q[:, 3], k) / 2
    wanted = np.exp(scores) / np.exp(scores).sum(-1, keepdims=True)
    np.testing.assert_allclose(maps["encoder"][0], wanted, atol=1e-4)


def encoding_by_hand(position, width):
    out = np.zeros((*position.shape[:-1], width))
    for axis in (0, 1):
        for i in range(width // 4):
            angle = 250 * position[..., axis] * 10_000 ** (-2 * (2 * i) / width)
            out[..., axis * width // 2 + 2 * i] = np.sin(angle)
            out[..., axis * width // 2 + 2 * i + 1] = np.cos(angle)
    return out


def test_bfloat16_stays_close_and_keeps_float32_parameters():
    model, params, batch = tiny()
    low = KSpaceTransformer(KSTConfig(**{**vars(TINY), "dtype": "bfloat16"}))
    started = jax.eval_shape(low.init, jax.random.key(0), batch)["params"]
    assert {x.dtype for x in jax.tree.leaves(started)} == {jnp.dtype("float32")}
    image = apply(low, params, batch).image
    assert image.dtype == jnp.float32
    difference = relative(image, np.asarray(apply(model, params, batch).image))
    assert 1e-6 < difference < 0.05


def test_initial_weights_are_xavier_with_bounded_biases():
    model = KSpaceTransformer(KSTConfig(width=64, mlp=128, lr_size=(4, 8)))
    params = jax.jit(model.init)(jax.random.key(0), make_kst_tiny.example())["params"]
    kernel = np.asarray(params["hr_decoder"]["mlp"]["mlp"]["hidden"]["kernel"])
    bound = (6 / (64 + 128)) ** 0.5
    assert kernel.shape == (6, 64, 128)
    assert 0.99 * bound < np.abs(kernel).max() <= bound
    assert (kernel[0] != kernel[1]).any()
    conv = params["hr_decoder"]["refinement"]["Conv_1"]
    bound = (6 / (64 * 9 * 2)) ** 0.5
    assert 0.99 * bound < np.abs(conv["kernel"]).max() <= bound
    assert 0.9 * (64 * 9) ** -0.5 < np.abs(conv["bias"]).max() <= (64 * 9) ** -0.5


def test_bad_sizes_are_refused():
    with pytest.raises(InputError, match=r"model\.width=30"):
        KSTConfig(width=30)
    with pytest.raises(InputError, match=r"model\.width=32"):
        KSTConfig(width=32, heads=5)
    with pytest.raises(InputError, match=r"model\.lr_size=\(0, 8\) .* at least"):
        KSTConfig(lr_size=(0, 8))
    with pytest.raises(InputError, match=r"model\.hr_layers=0"):
        KSTConfig(hr_layers=0)
    with pytest.raises(InputError, match=r"refinement_kernel=4 .* odd"):
        KSTConfig(refinement_kernel=4)
    with pytest.raises(InputError, match="auto, plain, blocked"):
        KSTConfig(attention="sparse")
    with pytest.raises(InputError, match="bfloat16"):
        KSTConfig(dtype="float64")
    with pytest.raises(InputError, match=r"'cudnn' .* supports dtype=float32"):
        KSTConfig(attention="cudnn")
    KSTConfig(lr_decoder=False).require_size((100, 100))  # without such a grid
    with pytest.raises(InputError, match=r"at most data\.size"):
        KSTConfig().require_size((100, 60))


@pytest.mark.slow
def test_remat_saves_memory_and_changes_no_gradient():
    found, memory = {}, {}
    for remat in ("none", "blocks", "layers"):
        model, params, batch = tiny(remat=remat, hr_layers=6)

        def objective(params, model=model, batch=batch):
            output = model.apply({"params": params}, batch)
            return loss(output, batch, TrainConfig(), "RM")

        compiled = jax.jit(jax.grad(objective)).lower(params).compile()
        found[remat] = compiled(params)
        memory[remat] = compiled.memory_analysis().temp_size_in_bytes
    assert memory["none"] > 1.2 * memory["blocks"] > 1.2 * memory["layers"]
    for remat in ("blocks", "layers"):
        jax.tree.map(
            lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-5),
            found[remat],
            found["none"],
        )


@pytest.mark.parametrize("lr_decoder", [True, False])
def test_attention_lies_where_its_keys_are(lr_decoder):
    model, params, batch = tiny(lr_decoder=lr_decoder)
    one = jax.tree.map(lambda x: x[:1], batch)
    found = attention_on_grid(model, params, one, (0.4, 0.4), (0.6, 0.7))
    mask = np.asarray(one.mask[0])
    keys = {"encoder": mask, "hr_decoder": mask}
    if lr_decoder:
        keys["hr_decoder"] = np.ones(model.config.lr_size, bool)
    for name, attention in found.items():
        weights = attention.weights
        assert weights.shape[2:] == keys[name].shape
        assert (np.isfinite(weights) == keys[name]).all()
        np.testing.assert_allclose(np.nansum(weights, (2, 3)), 1, rtol=1e-4)
    row, column = map(round, found["encoder"].token)
    assert mask[row, column]
    nearest = np.argwhere(mask) / (np.array(mask.shape) - 1) - 0.4
    place = np.array([row, column]) / (np.array(mask.shape) - 1) - 0.4
    np.testing.assert_allclose(
        np.linalg.norm(place), np.linalg.norm(nearest, axis=1).min(), rtol=1e-5
    )
    # The decoder's token is unsampled, wherever its grid shows it.
    share = found["hr_decoder"].token / (np.array(keys["hr_decoder"].shape) - 1)
    row, column = np.round(share * (np.array(mask.shape) - 1)).astype(int)
    assert not mask[row, column]
