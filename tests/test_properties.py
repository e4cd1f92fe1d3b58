"""Properties that hold for any masks, tokens and images: checked on drawn examples."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from skimage.metrics import (
    normalized_root_mse,
    peak_signal_noise_ratio,
    structural_similarity,
)

from kst_jax import masks, metrics, patches, sampling, tokens
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.patches import Layout

# Compiling is slow the first time, and the same examples come in every run.
settings.register_profile(
    "suite", deadline=None, derandomize=True, database=None, max_examples=50
)
settings.load_profile("suite")

SEEDS = st.integers(0, 2**32 - 1)
SHAPES = st.tuples(st.integers(1, 40), st.integers(1, 40))
EXACT = st.sampled_from([masks.gaussian_2d, masks.uniform_1d])
FASTMRI = st.sampled_from(["random", "equispaced", "equispaced_fraction"])


def rng(seed):
    return np.random.default_rng(seed)


# --- masks ---


@given(EXACT, SHAPES, st.floats(1, 60), st.integers(0, 12), SEEDS)
def test_an_exact_mask_has_its_count_and_its_centre_or_is_refused(
    draw, shape, acceleration, calibration, seed
):
    sides = shape if draw is masks.gaussian_2d else shape[1:]
    count = int(np.prod(sides) / acceleration)
    if calibration > min(sides) or count < max(1, calibration ** len(sides)):
        with pytest.raises(InputError, match=r"lower mask\."):
            draw(rng(seed), shape, acceleration, calibration)
        return
    mask = draw(rng(seed), shape, acceleration, calibration)
    assert (mask.shape, mask.dtype) == (shape, bool)
    assert sides == shape or (mask == mask[:1]).all()
    assert (mask if sides == shape else mask[0]).sum() == count
    starts = [(n - calibration + 1) // 2 for n in shape]
    rows, columns = (slice(start, start + calibration) for start in starts)
    assert mask[rows if sides == shape else slice(None), columns].all()
    again = draw(rng(seed), shape, acceleration, calibration)
    np.testing.assert_array_equal(mask, again)


@given(EXACT, st.integers(8, 40), st.floats(1.5, 6), SEEDS, SEEDS)
def test_other_seeds_draw_other_masks(draw, size, acceleration, seed, other):
    assume(seed != other)
    shape = (size, size)
    masks = [draw(rng(s), shape, acceleration) for s in (seed, other)]
    # Of columns there are few: then many seeds must not all draw one.
    more = [draw(rng(s + seed), shape, acceleration) for s in range(1, 9)]
    assert any((mask != masks[0]).any() for mask in [masks[1], *more])


@given(
    FASTMRI,
    st.integers(16, 400),
    st.integers(1, 5),
    st.integers(2, 12),
    st.floats(0.01, 0.3),
    st.text(min_size=1, max_size=12),
)
def test_fastmri_masks_stay_within_their_counts(
    kind, width, height, acceleration, fraction, file
):
    config = MaskConfig(
        kind=f"fastmri_{kind}", acceleration=acceleration, center_fraction=fraction
    )
    try:
        sampler = sampling.sampler(config, (height, width))
    except InputError:
        low = round(width * fraction)
        assert low < 1 or low >= width / acceleration
        return
    mask = sampler.fixed(file, 0, 0)
    least, most = sampler.counts
    assert least <= mask.sum() <= most
    low = round(width * fraction)
    start = (width - low + 1) // 2
    assert mask[:, start : start + low].all()
    assert (mask == mask[:1]).all()
    np.testing.assert_array_equal(mask, sampler.fixed(file, 7, 3))


@given(SHAPES, st.floats(1, 8), st.text(max_size=9), st.integers(0, 999), SEEDS)
def test_fixed_masks_are_the_same_every_time(shape, acceleration, file, index, seed):
    places = shape[0] * shape[1]
    assume(1 <= int(places / acceleration) < places)
    sampler = sampling.sampler(MaskConfig(acceleration=acceleration), shape)
    masks = [sampler.fixed(file, index, seed) for _ in range(2)]
    np.testing.assert_array_equal(*masks)
    assert masks[0].sum() == sampler.counts[0] == sampler.counts[1]


# --- tokens ---


@st.composite
def sampled(draw, shapes=SHAPES):
    """K-space and a mask with a point in it."""
    shape = draw(shapes)
    generator = rng(draw(SEEDS))
    mask = generator.random(shape) < draw(st.floats(0, 1))
    mask.flat[generator.integers(mask.size)] = True
    return generator.normal(size=(*shape, 2)).astype(np.float32), mask


@given(sampled(), st.integers(0, 5), st.integers(0, 5))
def test_tokens_and_queries_partition_the_grid(case, fewer, more):
    kspace, mask = case
    count, size = int(mask.sum()), mask.size
    least, most = max(1, count - fewer), min(size, count + more)
    found = tokens.tokenise(kspace, mask, Layout(least, most))
    valid = found.get("valid", np.ones(count, bool))
    assert valid.sum() == count
    assert len(found["value"]) == len(found["position"]) == most
    assert len(found["query"]) == size - least
    grid = np.array(mask.shape)
    places = np.round(found["position"][valid] * (grid - 1)).astype(int)
    taken = set(np.ravel_multi_index(places.T, mask.shape).tolist())
    asked = found["query"][: size - count].tolist()
    assert taken.isdisjoint(asked)
    assert taken | set(asked) == set(range(size))
    assert asked == sorted(asked)
    np.testing.assert_array_equal(found["value"][valid], kspace[tuple(places.T)])
    assert (found["value"][~valid] == 0).all()
    np.testing.assert_array_equal(found["kspace"][~mask], 0)


@given(sampled(st.sampled_from([(1, 1), (1, 9), (6, 5)])))
def test_what_is_asked_for_fills_what_was_not_measured(case):
    kspace, mask = case
    layout = Layout(1, mask.size)  # padded to one shape, which is compiled once
    batch = tokens.batch_of([tokens.tokenise(kspace, mask, layout)])
    order = tokens.query_order(batch)
    answers = tokens.at_queries(jnp.asarray(kspace[None]), batch.query)
    if not answers.size:
        return
    filled = tokens.fill(answers, order, batch.kspace, batch.acquisition)
    np.testing.assert_array_equal(filled[0], kspace)
    filled = tokens.fill(-answers, order, batch.kspace, batch.acquisition)
    signs = np.where(mask, 1, -1)[..., None]
    np.testing.assert_array_equal(filled[0], kspace * signs)


@given(sampled(), SHAPES)
def test_another_grid_keeps_what_was_measured_where_coordinates_meet(case, grid):
    kspace, mask = case
    found = tokens.regrid(kspace, mask, grid)
    old, new = patches.coordinates(mask.shape), patches.coordinates(grid)
    np.testing.assert_array_equal(found["value"], kspace[mask])
    assert found["mask"].shape == grid
    asked = set(found["query"].tolist())
    for number, place in enumerate(new.tolist()):
        row, column = divmod(number, grid[1])
        assert found["mask"][row, column] != (number in asked)
        near = np.abs(old[mask.ravel()] - place).max(axis=1) < 1e-6
        assert found["mask"][row, column] == near.any()
        if near.any():
            value = kspace[mask][near.argmax()]
            np.testing.assert_array_equal(found["kspace"][row, column], value)


# --- metrics ---


@st.composite
def stacks(draw):
    """A reconstruction and its target; shapes are few, since each is compiled."""
    shape = draw(st.sampled_from([(1, 7, 7), (2, 9, 16), (3, 20, 11)]))
    generator = rng(draw(SEEDS))
    target = generator.gamma(draw(st.floats(0.3, 5)), size=shape)
    target[:, 0, 0] = 0
    noise = draw(st.floats(0.001, 2)) * generator.normal(size=shape)
    blend = draw(st.floats(0, 1))
    return (blend * target + noise).astype(np.float32), target.astype(np.float32)


PSNR, SSIM = PER_SLICE = tuple(map(jax.jit, (metrics.psnr, metrics.ssim)))
NMSE, VOLUME_PSNR, VOLUME_SSIM = PER_VOLUME = tuple(
    map(jax.jit, (metrics.volume_nmse, metrics.volume_psnr, metrics.volume_ssim))
)
ALL = PER_SLICE + PER_VOLUME
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


@given(stacks())
def test_metrics_are_scikit_images(case):
    pred, target = (x.astype(np.float64) for x in case)
    psnr, ssim, volume_ssim = [], [], []
    for p, t in zip(pred, target, strict=True):
        span = {"data_range": np.ptp(t)}
        psnr.append(peak_signal_noise_ratio(t, p, **span))
        ssim.append(structural_similarity(t, p, **span))
        volume_ssim.append(structural_similarity(t, p, data_range=target.max()))
    np.testing.assert_allclose(PSNR(*case), psnr, **CLOSE)
    np.testing.assert_allclose(SSIM(*case), ssim, **CLOSE)
    np.testing.assert_allclose(
        [metric(*case) for metric in PER_VOLUME],
        [
            normalized_root_mse(target, pred) ** 2,
            peak_signal_noise_ratio(target, pred, data_range=target.max()),
            np.mean(volume_ssim),
        ],
        **CLOSE,
    )


@given(stacks(), st.integers(-30, 30))
def test_units_do_not_matter(case, exponent):
    pred, target = case
    unit = np.float32(2.0**exponent)  # exact, so that only the metric can differ
    for metric in ALL:
        found = metric(pred * unit, target * unit)
        np.testing.assert_allclose(found, metric(pred, target), **CLOSE)


@given(stacks(), st.sampled_from([(1,), (2,), (1, 2)]))
def test_mirroring_both_does_not_matter(case, axes):
    mirrored = [np.flip(x, axes) for x in case]
    for metric in ALL:
        np.testing.assert_allclose(metric(*mirrored), metric(*case), **CLOSE)


@given(stacks(), SEEDS)
def test_slices_in_another_order_are_scored_alike(case, seed):
    order = rng(seed).permutation(len(case[0]))
    shuffled = [x[order] for x in case]
    for metric in PER_SLICE:
        expected = np.asarray(metric(*case))[order]
        np.testing.assert_allclose(metric(*shuffled), expected, **CLOSE)
    for metric in PER_VOLUME:
        np.testing.assert_allclose(metric(*shuffled), metric(*case), **CLOSE)


@given(stacks())
def test_nothing_is_better_than_the_target_itself(case):
    pred, target = case
    assume((pred != target).any(axis=(1, 2)).all())
    assert np.isposinf(PSNR(target, target)).all()
    assert (np.asarray(SSIM(target, target)) == 1).all()
    assert NMSE(target, target) == 0
    assert np.isposinf(VOLUME_PSNR(target, target))
    assert VOLUME_SSIM(target, target) == 1
    assert np.isfinite(PSNR(pred, target)).all()
    assert (np.asarray(SSIM(pred, target)) < 1).all()
    assert NMSE(pred, target) > 0
    assert VOLUME_SSIM(pred, target) < 1


@given(stacks(), st.floats(1.1, 10))
def test_a_larger_error_scores_worse(case, factor):
    pred, target = case
    worse = target + np.float32(factor) * (pred - target)
    gain = 20 * np.log10(factor)
    for metric in (PSNR, VOLUME_PSNR):
        lost = np.asarray(metric(pred, target)) - np.asarray(metric(worse, target))
        np.testing.assert_allclose(lost, gain, rtol=1e-2)
    ratio = NMSE(worse, target) / NMSE(pred, target)
    np.testing.assert_allclose(ratio, factor**2, rtol=1e-2)
