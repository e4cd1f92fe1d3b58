"""Splits of measured points, and how likely it is that they hold a point out."""

import dataclasses

import numpy as np
import pytest

from kst_jax import sampling
from kst_jax.config import Config, TrainConfig
from kst_jax.data import splits
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.models.d5c5 import D5C5Config

SHAPE = (12, 24)
MASKS = {
    "lines": MaskConfig("uniform_1d", 3.0, calibration=2),
    "points": MaskConfig("gaussian_2d", 4.0),
    "random": MaskConfig("fastmri_random", 3.0, center_fraction=0.25),
}


def opened(mask, **train):
    train = TrainConfig(supervision="self", **train)
    config = Config(mask=mask, train=train, model=D5C5Config())
    sampler = sampling.sampler(mask, SHAPE)
    return splits.splitter_of(config, sampler), sampler


@pytest.mark.parametrize("kind", MASKS)
def test_a_split_parts_what_was_measured(kind):
    splitter, sampler = opened(MASKS[kind])
    rng = np.random.default_rng(0)
    rows, columns = slice(None), slice(11, 13)
    if kind == "points":
        rows, columns = slice(4, 8), slice(10, 14)
    for _ in range(20):
        mask = sampler.random(rng)
        seen, held_out = splitter.split(rng, mask)
        np.testing.assert_array_equal(seen | (held_out > 0), mask)
        assert not (seen & (held_out > 0)).any()
        assert not held_out[rows, columns].any()
        assert set(np.unique(held_out)) == {0, 1}
        assert seen.sum() == splitter.seen(int(mask.sum()))
        if kind != "points":
            assert (seen == seen[:1]).all()


def test_so_many_places_are_held_out_as_asked():
    """Of 8 columns, 2 in the centre, and of 72 points, up to 16 in the centre."""
    for mask, share, wanted in (
        (MASKS["lines"], 0.4, 12 * 2),
        (MASKS["lines"], 0.7, 12 * 4),
        (MASKS["points"], 0.25, 14),
    ):
        splitter, sampler = opened(mask, held_out=share)
        rng = np.random.default_rng(0)
        for _ in range(3):
            _, held_out = splitter.split(rng, sampler.random(rng))
            assert held_out.sum() == wanted


def test_the_layout_of_what_is_seen_holds_every_split():
    splitter, sampler = opened(MASKS["random"])
    layout = splitter.layout(sampler.layout((1, 1)))
    rng = np.random.default_rng(0)
    for _ in range(50):
        seen, _ = splitter.split(rng, sampler.random(rng))
        assert layout.least <= seen.sum() <= layout.most
    assert layout.most < sampler.counts[1]


def test_places_are_drawn_by_a_normal_density_about_the_centre():
    """Like one by one without repetition, by NumPy."""
    splitter = splits.Splitter(0.3, SHAPE, lines=True)
    rng, mask = np.random.default_rng(0), np.ones(SHAPE, bool)
    found = np.mean([splitter.split(rng, mask)[1][0] for _ in range(4000)], axis=0)
    density = np.exp(-(((np.arange(24) - 11.5) / 6) ** 2) / 2)
    density[11:13] = 0
    density /= density.sum()
    draws = [rng.choice(24, 7, replace=False, p=density) for _ in range(4000)]
    wanted = np.bincount(np.concatenate(draws), minlength=24) / 4000
    np.testing.assert_allclose(found, wanted, atol=0.04)
    assert found[10] > 2 * found[0]


@pytest.mark.parametrize("kind", MASKS)
def test_weighted_errors_are_on_average_those_of_all_points(kind):
    """Outside of the centre, of a wrong spectrum with more at low frequencies."""
    splitter, sampler = opened(MASKS[kind], weighted=True)
    rng = np.random.default_rng(1)
    error = rng.exponential(size=SHAPE) * np.exp(splitter.log_density)
    error[splitter.centre & np.ones(SHAPE, bool)] = 0
    found = []
    for _ in range(2000):
        _, held_out = splitter.split(rng, sampler.random(rng))
        found.append((held_out * error).sum())
    assert np.mean(found) == pytest.approx(error.sum(), rel=0.06)
    # Without weights it is far less.
    assert np.mean([(held_out > 0).sum()]) < 0.3 * error.size


def test_places_that_are_never_held_out_have_no_weight():
    splitter, _ = opened(MASKS["lines"], weighted=True)
    never = np.zeros(SHAPE, bool)
    never[:, 11:13] = True
    np.testing.assert_array_equal(splitter.weights == 0, never)


@pytest.mark.parametrize(
    ("mask", "share", "message"),
    [
        (MASKS["lines"], 0.05, r"held_out=0\.05 holds out none of the 8 columns"),
        (
            MaskConfig("gaussian_2d", 18.0),
            0.4,
            "16 points .*lower config.mask.acceleration",
        ),
    ],
)
def test_a_split_that_leaves_nothing_to_compare_is_refused(mask, share, message):
    with pytest.raises(InputError, match=message):
        opened(mask, held_out=share)


def test_there_is_no_split_with_targets():
    config = dataclasses.replace(Config(), mask=MASKS["lines"])
    assert splits.splitter_of(config, sampling.sampler(config.mask, SHAPE)) is None
