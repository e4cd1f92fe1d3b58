"""Masks: exact counts, densities, fastMRI's published ones."""

import json
import pathlib

import numpy as np
import pytest

from kst_jax import masks, sampling
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig

REFERENCES = pathlib.Path(__file__).parent / "references"
FASTMRI = json.loads((REFERENCES / "fastmri_masks.json").read_text())


def rng(seed=0):
    return np.random.default_rng(seed)


@pytest.mark.parametrize("shape", [(128, 128), (63, 40)])
@pytest.mark.parametrize("acceleration", [2.5, 5, 10, 7.3])
@pytest.mark.parametrize("calibration", [0, 4])
def test_counts_are_exact(shape, acceleration, calibration):
    points = masks.gaussian_2d(rng(), shape, acceleration, calibration)
    assert points.shape == shape
    assert points.sum() == int(shape[0] * shape[1] / acceleration)
    columns = masks.uniform_1d(rng(), shape, acceleration, calibration)
    assert (columns == columns[:1]).all()
    assert columns[0].sum() == int(shape[1] / acceleration)


def test_acceleration_of_one_samples_everything():
    assert masks.gaussian_2d(rng(), (8, 8), 1).all()
    assert masks.uniform_1d(rng(), (8, 8), 1).all()


def test_calibration_is_the_centre():
    columns = masks.uniform_1d(rng(), (4, 20), 4, 5)[0]
    np.testing.assert_array_equal(np.flatnonzero(columns), [8, 9, 10, 11, 12])
    points = masks.gaussian_2d(rng(), (20, 20), 5, 4)
    assert points[8:12, 8:12].all()


def test_gaussian_points_spread_as_a_normal():
    """Few points hardly exclude each other, so their spread is that of the normal."""
    shape = (64, 32)
    drawn = [
        np.argwhere(masks.gaussian_2d(rng(seed), shape, 100)) for seed in range(400)
    ]
    points = np.concatenate(drawn) - (np.array(shape) - 1) / 2
    np.testing.assert_allclose(points.mean(axis=0), 0, atol=0.6)
    # a normal of sigma n / 4 cut off at n / 2, that is at two sigma
    np.testing.assert_allclose(
        points.std(axis=0), 0.88 * np.array(shape) / 4, rtol=0.03
    )


def test_uniform_columns_are_uniform():
    counts = sum(masks.uniform_1d(rng(s), (1, 20), 4)[0] for s in range(2000))
    np.testing.assert_allclose(counts / 2000, 0.25, atol=0.04)


@pytest.mark.parametrize("name", FASTMRI)
def test_fastmri_masks_equal_the_published_ones(name):
    kind, file, width = name.split()
    draw = getattr(masks, f"fastmri_{kind}")
    legacy = np.random.RandomState(sampling.filename_seed(file))
    mask = draw(legacy, (5, int(width)), (4, 8), (0.08, 0.04))
    assert "".join("01"[v] for v in mask[0].astype(int)) == FASTMRI[name]
    assert (mask == mask[:1]).all()


@pytest.mark.parametrize("kind", ["random", "equispaced", "equispaced_fraction"])
@pytest.mark.parametrize("width", [64, 320])
def test_fastmri_counts_stay_within_the_padding(kind, width):
    sampler = sampling.sampler(MaskConfig(kind=f"fastmri_{kind}"), (4, width))
    counts = [sampler.fixed(f"file{n}.h5", 0, 0).sum() for n in range(300)]
    least, most = sampler.counts
    assert least <= min(counts)
    assert max(counts) <= most < 4 * width


def test_fixed_masks_depend_on_seed_file_and_slice_alone():
    sampler = sampling.sampler(MaskConfig(), (16, 16))
    mask = sampler.fixed("a.nii", 3, 0)
    np.testing.assert_array_equal(mask, sampler.fixed("a.nii", 3, 0))
    for other in (("b.nii", 3, 0), ("a.nii", 4, 0), ("a.nii", 3, 1)):
        assert (mask != sampler.fixed(*other)).any()


def test_bank_masks_come_from_the_bank():
    bank = np.stack([masks.uniform_1d(rng(s), (8, 8), 4) for s in range(5)])
    sampler = sampling.sampler(MaskConfig(kind="bank", bank="masks.npy"), (8, 8), bank)
    assert sampler.fixed_acceleration("file.h5") is None  # the masks decide
    drawn = {sampler.random(rng(s)).tobytes() for s in range(60)}
    assert drawn == {mask.tobytes() for mask in bank}


@pytest.mark.parametrize(
    ("kind", "acceleration", "calibration"),
    [("gaussian_2d", 300, 0), ("uniform_1d", 17, 0), ("uniform_1d", 4, 6)],
)
def test_a_mask_without_points_is_refused(kind, acceleration, calibration):
    config = MaskConfig(kind=kind, acceleration=acceleration, calibration=calibration)
    with pytest.raises(InputError, match=r"lower mask\.acceleration"):
        sampling.sampler(config, (16, 16))


def test_bad_settings_are_refused():
    with pytest.raises(InputError, match="above 1"):
        MaskConfig(acceleration=0.5)
    with pytest.raises(InputError, match="gaussian_2d, uniform_1d"):
        sampling.sampler(MaskConfig(kind="rosette"), (16, 16))
    with pytest.raises(InputError, match="does not fit"):
        sampling.sampler(MaskConfig(kind="fastmri_random", acceleration=40), (16, 320))
    bank = np.ones((2, 8, 8), bool)
    bank[0, 0] = False
    of_bank = MaskConfig(kind="bank", bank="b.npy")
    with pytest.raises(InputError, match=r"data\.size"):
        sampling.sampler(of_bank, (16, 16), bank)
    with pytest.raises(InputError, match=r"b\.npy: mask 1 measures all"):
        sampling.sampler(of_bank, (8, 8), bank)
    for kind in ("gaussian_2d", "fastmri_random", "fastmri_equispaced"):
        with pytest.raises(InputError, match=r"mask\.acceleration=1 .* above 1"):
            MaskConfig(kind=kind, acceleration=1)


@pytest.mark.parametrize("draw", [masks.gaussian_2d, masks.uniform_1d])
def test_a_calibration_wider_than_kspace_is_refused(draw):
    assert draw(rng(), (20, 10), 1, 10).all()
    with pytest.raises(InputError, match=r"lower mask\.calibration"):
        draw(rng(), (20, 10), 1, 12)
