"""Patches of k-space: grouping, layouts, and networks whose tokens are patches."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from kst_jax import patches, sampling, tokens
from kst_jax.errors import InputError
from kst_jax.fourier import fft2c
from kst_jax.mask_config import MaskConfig
from kst_jax.models.attention_maps import attention_on_grid
from kst_jax.models.blocks import positional_encoding
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import KSpaceTransformer, reconstruct_slice
from kst_jax.patches import Layout
from tests.references import make_kst_tiny
from tests.test_kst import apply

CONFIG = KSTConfig(
    width=16,
    heads=2,
    mlp=16,
    encoder_layers=1,
    lr_layers=1,
    hr_layers=2,
    lr_size=(5, 4),
    refinement_features=4,
    refinement_layers=1,
    residual_spectrum=0.1,
)
LINES = MaskConfig("uniform_1d", 3.0, calibration=1)
POINTS = MaskConfig("gaussian_2d", 3.0)
RANDOM = MaskConfig("fastmri_random", 3.0, center_fraction=0.2)
SHAPE = (10, 12)


def slice_of(mask_config, shape=SHAPE, seed=0):
    rng = np.random.default_rng(seed)
    kspace = rng.normal(size=(*shape, 2)).astype(np.float32)
    return kspace, sampling.sampler(mask_config, shape).random(rng)


def network(patch, kspace, mask, **changes):
    """A network of random weights, and a batch of one slice."""
    config = dataclasses.replace(CONFIG, patch=patch, **changes)
    layout = Layout.of(mask, patch=patch)
    batch = tokens.batch_of([tokens.tokenise(kspace, mask, layout)], patch=patch)
    model = KSpaceTransformer(config)
    return model, make_kst_tiny.weights(model, batch), batch


@pytest.mark.parametrize("patch", [(1, 1), (4, 1), (2, 2), (3, 5)])
@pytest.mark.parametrize("shape", [(8, 6), (10, 12), (7, 5)])
def test_a_patch_has_the_points_of_its_block(shape, patch):
    points = np.random.default_rng(0).normal(size=(2, *shape, 3)).astype(np.float32)
    got = patches.split(points, patch)
    count = -(-shape[0] // patch[0]), -(-shape[1] // patch[1])
    assert got.shape == (2, count[0] * count[1], patch[0] * patch[1] * 3)
    for n, (i, j) in enumerate(np.ndindex(count)):
        block = np.zeros((2, *patch, 3))
        rows, columns = (
            slice(k * p, k * p + p) for k, p in zip((i, j), patch, strict=True)
        )
        part = points[:, rows, columns]
        block[:, : part.shape[1], : part.shape[2]] = part
        np.testing.assert_array_equal(got[:, n], block.reshape(2, -1))
    np.testing.assert_array_equal(patches.join(got, shape, patch), points)
    np.testing.assert_array_equal(patches.split(jnp.asarray(points), patch), got)


def test_coordinates_reach_both_ends():
    c = patches.coordinates((3, 2))
    np.testing.assert_allclose(c, [[0, 0], [0, 1], [0.5, 0], [0.5, 1], [1, 0], [1, 1]])


def test_a_patch_is_where_its_middle_is():
    places = patches.coordinates((9, 4)).reshape(9, 4, 2)
    middles = patches.coordinates((9, 4), (4, 2)).reshape(3, 2, 2)
    for i, j in np.ndindex(2, 2):  # the third row of patches reaches beyond the grid
        block = places[4 * i : 4 * i + 4, 2 * j : 2 * j + 2]
        np.testing.assert_allclose(middles[i, j], block.mean(axis=(0, 1)), atol=1e-7)
    np.testing.assert_allclose(middles[2, :, 0], 9.5 / 8, atol=1e-7)


@pytest.mark.parametrize("patch", [(1, 1), (4, 1), (3, 2)])
@pytest.mark.parametrize("setting", [LINES, POINTS, RANDOM])
def test_one_layout_serves_all_masks_of_a_setting(setting, patch):
    sampler = sampling.sampler(setting, SHAPE)
    layout = sampler.layout(patch)
    shapes, numbers = set(), set()
    for seed in range(40):
        kspace, mask = slice_of(setting, seed=seed)
        found = tokens.tokenise(kspace, mask, layout)
        shapes.add((found["value"].shape, found["query"].shape))
        numbers.add(int(patches.within(mask, patch).any(-1).sum()))
        # nothing is left out: neither a measured point nor a missing one
        valid = found.get("valid", np.ones(len(found["value"]), bool))
        seen = found.get("seen", valid[:, None])
        assert seen[valid].sum() == mask.sum()
        asked = patches.within(~mask, patch).any(-1)
        assert set(np.flatnonzero(asked)) <= set(found["query"])
    assert len(shapes) == 1
    assert not layout.exact or len(numbers) == 1


def test_whole_lines_need_no_padding():
    layout = sampling.sampler(LINES, SHAPE).layout((4, 1))
    columns = int(slice_of(LINES)[1][0].sum())
    assert layout.exact
    assert layout.tokens(SHAPE) == 3 * columns  # 10 rows are 3 patches
    assert layout.queries(SHAPE) == 3 * (12 - columns)


def test_a_bank_is_of_lines_if_all_of_its_masks_are():
    masks = [slice_of(LINES, seed=seed)[1] for seed in range(3)]
    config = MaskConfig("bank", bank="masks.npy")
    assert sampling.sampler(config, SHAPE, np.stack(masks)).layout((4, 1)).exact
    masks[1] = slice_of(POINTS)[1]
    layout = sampling.sampler(config, SHAPE, np.stack(masks)).layout((4, 1))
    assert layout.tokens(SHAPE) == 3 * 12  # any patch may hold a point


def test_masks_of_another_layout_are_refused():
    kspace, mask = slice_of(POINTS)
    lines = sampling.sampler(LINES, SHAPE).layout((4, 1))
    with pytest.raises(InputError, match="single setting"):
        tokens.tokenise(kspace, mask, lines)


def test_a_token_holds_the_sampled_values_of_its_patch_and_where_they_are():
    kspace, mask = slice_of(POINTS)
    found = tokens.tokenise(kspace, mask, Layout.of(mask, patch=(2, 2)))
    blocks = [
        (mask[i : i + 2, j : j + 2], kspace[i : i + 2, j : j + 2])
        for i in range(0, 10, 2)
        for j in range(0, 12, 2)
    ]
    some = [(m, k) for m, k in blocks if m.any()]
    assert sum(not m.all() for m, _ in some) > 0
    for n, (m, k) in enumerate(some):
        np.testing.assert_array_equal(found["seen"][n], m.ravel())
        np.testing.assert_array_equal(
            found["value"][n], np.where(m[..., None], k, 0).ravel()
        )


@pytest.mark.parametrize("patch", [(2, 2), (4, 5), (3, 1)])
@pytest.mark.parametrize("setting", [LINES, POINTS])
def test_what_queries_answer_goes_where_they_asked(setting, patch):
    kspace, mask = slice_of(setting)
    layout = sampling.sampler(setting, SHAPE).layout(patch)
    batch = tokens.batch_of([tokens.tokenise(kspace, mask, layout)], patch=patch)
    order = tokens.query_order(batch)
    answers = tokens.at_queries(jnp.asarray(kspace)[None], batch.query, patch)
    for sign in (1, -1):
        filled = tokens.fill(
            sign * answers, order, batch.kspace, batch.acquisition, patch
        )
        wanted = np.where(mask[..., None], kspace, sign * kspace)
        np.testing.assert_array_equal(filled[0], wanted)


@pytest.mark.parametrize(
    ("setting", "patch"), [(LINES, (4, 1)), (POINTS, (2, 2)), (POINTS, (4, 5))]
)
@pytest.mark.slow
def test_measured_values_stay_and_each_counts(setting, patch):
    kspace, mask = slice_of(setting)
    model, params, batch = network(patch, kspace, mask)
    image = apply(model, params, batch).image
    spectrum = np.asarray(fft2c(image))[0]
    np.testing.assert_allclose(spectrum[mask], kspace[mask], atol=1e-5)
    # the network's answer differs from zero at every missing point
    assert (np.abs(spectrum[~mask]).max(axis=-1) > 1e-4).all()
    # a measured value changes what is predicted elsewhere
    other = kspace.copy()
    row, column = np.argwhere(mask)[3]
    other[row, column] += 1
    layout = Layout.of(mask, patch=patch)
    fields = tokens.tokenise(other, mask, layout)
    changed = apply(model, params, tokens.batch_of([fields], patch=patch)).image
    assert np.abs(np.asarray(fft2c(changed))[0] - spectrum)[~mask].max() > 1e-5


def test_a_query_knows_which_of_its_points_are_sampled():
    """A value of zero may have been measured or be missing."""
    kspace, mask = slice_of(POINTS)
    row, column = next(
        (2 * i, 2 * j)
        for i, j in np.ndindex(5, 6)
        if mask[2 * i, 2 * j] and not mask[2 * i + 1, 2 * j + 1]
    )
    kspace[row, column] = 0
    fewer = mask.copy()
    fewer[row, column] = False
    model, params, _ = network(
        (2, 2), kspace, mask, transformer=False, refinement=False, hr_layers=1
    )
    layout = Layout.of(mask, fewer, patch=(2, 2))
    answers = []
    for one in (mask, fewer):
        batch = tokens.batch_of([tokens.tokenise(kspace, one, layout)], patch=(2, 2))
        answers.append(np.asarray(fft2c(apply(model, params, batch).image))[0])
    change = np.abs(answers[1] - answers[0]).max(axis=-1)
    block = np.zeros(SHAPE, bool)
    block[row : row + 2, column : column + 2] = True
    assert change[row + 1, column + 1] > 1e-4
    assert change[~block].max() < 1e-5  # other queries see the same as before


def test_low_resolution_queries_are_at_the_middles_of_their_patches():
    kspace, mask = slice_of(LINES)
    model, params, batch = network((3, 1), kspace, mask)
    inspect = jax.jit(functools.partial(model.apply, mutable=["intermediates"]))
    _, state = inspect({"params": params}, batch)
    attention = state["intermediates"]["lr_decoder"]["cross_attention"]
    ((q_SxBxLxKxC, _),) = attention["query_key"]
    # 5 rows are patches of rows 0 to 2 and 3 to 5, the last of which is not there
    middles = [[row, column / 3] for row in (1 / 4, 4 / 4) for column in range(4)]
    x_LxD = np.asarray(positional_encoding(jnp.asarray(middles), 16))
    weights = params["lr_decoder"]["cross_attention"]
    y = (x_LxD - x_LxD.mean(-1, keepdims=True)) / x_LxD.std(-1, keepdims=True)
    y = y * weights["norm"]["scale"][0] + weights["norm"]["bias"][0]
    wanted = y @ weights["query"]["kernel"][0]
    np.testing.assert_allclose(q_SxBxLxKxC[0, 0].reshape(8, 16), wanted, atol=1e-4)


def test_padded_tokens_of_patches_change_nothing():
    kspace, mask = slice_of(POINTS)
    model, params, batch = network((2, 2), kspace, mask)
    count = int(patches.within(mask, (2, 2)).any(-1).sum())
    assert count < batch.value.shape[1]  # the bound is loose
    value = np.where(batch.valid[..., None], batch.value, np.float32(1e3))
    padded = dataclasses.replace(batch, value=value)
    wanted, got = (apply(model, params, b).image for b in (batch, padded))
    np.testing.assert_allclose(got, wanted, atol=2e-5)


def test_points_beyond_the_grid_do_not_matter():
    """Rows that no patch divides: the network answers as if they ended there."""
    kspace, mask = slice_of(LINES)
    model, params, batch = network((4, 1), kspace, mask, transformer=False)
    images = apply(model, params, batch)
    assert images.image.shape == (1, *SHAPE, 2)
    spectrum = np.asarray(fft2c(images.supervised["kspace"][0]))[0]
    np.testing.assert_allclose(spectrum[mask], kspace[mask], atol=1e-5)
    # without attention a patch's first answer depends on its own points alone
    moved = kspace.copy()
    moved[8:, mask[0]] += 1  # the last patches, 2 of whose 4 rows are on the grid
    fields = tokens.tokenise(moved, mask, Layout.of(mask, patch=(4, 1)))
    other = apply(model, params, tokens.batch_of([fields], patch=(4, 1)))
    found = np.asarray(fft2c(other.supervised["kspace"][0]))[0]
    np.testing.assert_allclose(found[:, ~mask[0]], spectrum[:, ~mask[0]], atol=1e-5)


@pytest.mark.slow
def test_patches_are_as_good_on_another_grid():
    kspace, mask = slice_of(LINES)
    model, params, batch = network((4, 1), kspace, mask)
    wanted = apply(model, params, batch).image
    same = reconstruct_slice(model, params, kspace, mask).image
    np.testing.assert_allclose(same, wanted, atol=1e-5)
    finer = reconstruct_slice(model, params, kspace, mask, grid=(19, 23)).image
    spectrum = np.asarray(fft2c(finer))[0, ::2, ::2]
    np.testing.assert_allclose(spectrum[mask], kspace[mask], atol=1e-5)


def test_the_attention_of_patches_fills_their_points():
    kspace, mask = slice_of(LINES)
    model, params, batch = network((4, 1), kspace, mask)
    maps = attention_on_grid(model, params, batch)
    encoder, decoder = maps["encoder"].weights, maps["hr_decoder"].weights
    assert encoder.shape == (1, 2, *SHAPE)
    assert decoder.shape == (2, 2, 5, 4)
    np.testing.assert_array_equal(np.isnan(encoder[0, 0]), ~mask)
    # weights of the 3 patches of a column sum to 1 over all columns
    np.testing.assert_allclose(np.nansum(encoder[:, :, [0, 4, 8]], (2, 3)), 1, 1e-5)
    np.testing.assert_allclose(decoder[:, :, [0, 4]].sum((2, 3)), 1, 1e-5)
    np.testing.assert_array_equal(encoder[:, :, 0], encoder[:, :, 3])


def test_a_batch_of_other_patches_is_refused():
    kspace, mask = slice_of(LINES)
    _, _, batch = network((1, 1), kspace, mask)
    model = KSpaceTransformer(dataclasses.replace(CONFIG, patch=(4, 1)))
    with pytest.raises(ValueError, match="patches of"):
        model.init(jax.random.key(0), batch)


@pytest.mark.parametrize("patch", [(0, 1), (2, -1)])
def test_a_patch_without_points_is_refused(patch):
    with pytest.raises(InputError, match=r"config.model.patch"):
        dataclasses.replace(CONFIG, patch=patch)
