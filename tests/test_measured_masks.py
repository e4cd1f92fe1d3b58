"""Training on scans that the scanner undersampled, by the masks of their files."""

import pickle

import h5py
import numpy as np
import pytest

from kst_jax.data import measured, opening, pipeline, sensitivities, splits, volumes
from kst_jax.data_config import CoilsConfig, Selection
from kst_jax.errors import InputError
from kst_jax.reconstruct import runner
from kst_jax.reconstruct.inputs import Undersampling, measure
from kst_jax.reconstruct.runner import Options, reconstruct
from kst_jax.runs.checkpoints import read_parameters
from kst_jax.training import loop
from kst_jax.training.validation import Validator
from tests.fastmri_files import crop, fft, ifft
from tests.measured_scans import (
    COLUMNS,
    CONFIG,
    COUNTS,
    MASKS,
    ROWS,
    WIDTH,
    fastmri_scans,
    opened,
    padded,
    visits,
    write_mrd,
)
from tests.test_self_supervision import changed
from tests.test_training import rows


@pytest.fixture
def fastmri(tmp_path):
    return fastmri_scans(tmp_path / "scans")


def complex_of(kspace):
    return kspace[..., 0] + 1j * kspace[..., 1]


def scaled(kspace):
    return kspace / np.linalg.norm(kspace)


def test_all_that_is_seen_and_compared_is_what_the_scanner_measured(fastmri):
    """In values and places, whichever slice; nobody knows its image."""
    config, kspace = fastmri
    source, sampler = opened(config)
    wanted = {}
    for file, slices in kspace.items():
        for number, one in enumerate(slices):
            cropped = fft(crop(ifft(one), (ROWS, WIDTH))) * padded(MASKS[file[:3]])
            wanted[file, number] = scaled(cropped)
    assert len(source) == 4
    met, held = set(), set()
    for batch in visits(source, config, sampler, 16):
        assert batch.image is None
        assert not (batch.mask & (batch.held_out > 0)).any()
        found = scaled(complex_of(batch.kspace + batch.held_kspace))
        errors = {key: np.linalg.norm(found - one) for key, one in wanted.items()}
        nearest = min(errors, key=errors.get)
        assert errors[nearest] < 1e-5
        columns = batch.mask[0] | (batch.held_out[0] > 0)
        np.testing.assert_array_equal(columns, padded(MASKS[nearest[0][:3]]))
        outside = (np.arange(WIDTH) < COLUMNS[0]) | (np.arange(WIDTH) >= COLUMNS[1])
        np.testing.assert_array_equal(batch.empty[0], outside)
        met.add(nearest)
        held.add(batch.held_out.tobytes())
    assert met == set(wanted)
    assert len(held) > 6


def test_a_sampler_knows_each_slice_and_the_range_of_their_points(fastmri):
    source, sampler = opened(fastmri[0])
    assert sampler.counts == COUNTS
    assert sampler.lines
    for number in range(len(source)):
        about = source.describe(number)
        mask = sampler.fixed(about.file, about.index, seed=number)
        assert mask.shape == (ROWS, WIDTH)
        np.testing.assert_array_equal(mask[3], padded(MASKS[about.file[:3]]))
    drawn = {sampler.random(np.random.default_rng(n)).tobytes() for n in range(20)}
    assert len(drawn) == 2


def test_scans_of_other_sizes_have_samplers_of_their_own(fastmri, tmp_path):
    config, kspace = fastmri
    wide = np.pad(kspace["one.h5"], [(0, 0), (0, 0), (0, 4)])
    mask = np.pad(padded(MASKS["one"]), (0, 4))
    with h5py.File(tmp_path / "scans" / "wide.h5", "w") as file:
        file["kspace"], file["mask"] = wide, mask
    source, sampler = opened(config)
    other = sampler.at((2 * ROWS, WIDTH + 4))
    assert other.counts == (mask.sum() * 2 * ROWS,) * 2
    np.testing.assert_array_equal(other.fixed("wide.h5", 0, 0)[0], mask)
    assert sampler.at((ROWS, WIDTH)).counts == COUNTS
    shapes = {batch.mask.shape for batch in visits(source, config, sampler, 12)}
    assert shapes == {(ROWS, WIDTH), (2 * ROWS, WIDTH + 4)}


def test_repetitions_of_a_raw_scan_have_masks_of_their_own(tmp_path):
    config = changed(CONFIG, data={"train": str(write_mrd(tmp_path)), "size": (12, 10)})
    source, sampler = opened(config)
    assert sampler.counts == (6 * 12, 7 * 12)
    volume = source.entries[0][0].volume
    for index in (0, 1):
        wanted = measure(volume, index, config, Undersampling()).mask
        np.testing.assert_array_equal(sampler.fixed("scan.mrd", index, 0), wanted)
    for batch in visits(source, config, sampler, 4):
        columns = batch.mask[0] | (batch.held_out[0] > 0)
        assert columns.sum() == (6 if columns[0] else 7)
        assert not (batch.mask & (batch.held_out > 0)).any()


def test_in_a_scan_without_a_mask_zeros_were_not_measured(tmp_path):
    rng = np.random.default_rng(0)
    kspace = rng.normal(size=(1, ROWS, WIDTH)) * (1 + 1j) * MASKS["one"]
    np.save(tmp_path / "scan.npy", kspace.astype("c8"))
    config = changed(CONFIG, data={"train": str(tmp_path / "scan.npy")})
    _, sampler = opened(config)
    np.testing.assert_array_equal(sampler.fixed("scan.npy", 0, 0)[0], MASKS["one"])


def of_two_coils(path):
    coils = CoilsConfig(2, maps="low_resolution", calibration=12)
    data = {"train": str(path), "size": (12, 12), "coils": coils}
    return changed(CONFIG, data=data)


def test_virtual_coils_hold_what_the_scanner_measured(tmp_path):
    config = of_two_coils(write_mrd(tmp_path, coils=4, calibration=True))
    source, sampler = opened(config)
    source = sensitivities.estimate(source, config, tmp_path / "maps")
    wanted = []
    for index in (0, 1):
        compression = source.receiver(index, 0, (12, 10)).compression
        sample = source.sample(index)
        wanted.append(scaled(np.tensordot(compression, sample.kspace * sample.mask, 1)))
    for batch in visits(source, config, sampler, 4):
        found = scaled(complex_of(batch.kspace + batch.held_kspace))
        assert batch.kspace.shape == (2, 12, 10, 2)
        assert min(np.linalg.norm(found - one) for one in wanted) < 1e-5
        assert batch.held_kspace.any()


@pytest.mark.parametrize("calibration", [False, True])
def test_maps_are_those_that_reconstruction_will_use(tmp_path, calibration):
    """Of the lines measured for them, if there are any; never of rounding errors."""
    path = write_mrd(tmp_path, coils=4, calibration=calibration)
    config = of_two_coils(path)
    source, _ = opening.open_sources(config)
    if not calibration:  # three columns in the centre are too few
        with pytest.raises(InputError, match=r"scan\.mrd: slice 0: .*maps need 4"):
            sensitivities.estimate(source, config, tmp_path / "maps")
        return
    source = sensitivities.estimate(source, config, tmp_path / "maps")
    volume = volumes.open_scan(path, Selection())
    slices = runner._measured(volume, config, Options())
    wanted = runner._maps(volume, slices, config.data.coils)
    for index in (0, 1):
        receiver = source.receiver(index, 0, (12, 10))
        np.testing.assert_allclose(
            receiver.maps, wanted[index, ..., 0] + 1j * wanted[index, ..., 1], atol=1e-5
        )


@pytest.mark.parametrize("lines", [True, False])
def test_training_never_sees_what_a_zero_shot_run_validates_by(tmp_path, lines):
    """Of the same slice: the one scan that there is."""
    rng, size = np.random.default_rng(0), (ROWS, WIDTH)
    mask = MASKS["one"] if lines else rng.random(size) < 0.4
    kspace = (rng.normal(size=size) + 1j * rng.normal(size=size)) * mask
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"], file["mask"] = kspace.astype("c8")[None], mask
    config = changed(
        CONFIG,
        data={"train": str(tmp_path / "scan.h5")},
        train={"validate_every": 1, "validation_share": 0.3},
    )
    source, sampler = opened(config)
    same, validation = opening.set_validation_apart(config, source, source.select(()))
    assert same is validation is source
    whole = opening.sampler_of(source, config, validation=True)
    np.testing.assert_array_equal(
        whole.fixed("scan.h5", 0, 0), np.broadcast_to(mask, size)
    )
    validator = Validator(config, validation, whole, None)
    stream = pipeline.evaluation_batches(
        source, validator._config, whole, holds_out=True
    )
    (batch,) = [test.batch for test in stream]
    apart, seen = batch.held_out[0] > 0, batch.mask[0]
    assert apart.any()
    assert (apart == apart[:1]).all() == lines
    np.testing.assert_array_equal(seen | apart, np.broadcast_to(mask, size))
    used = np.zeros(size, bool)
    for visit in visits(source, config, sampler, 12):
        ever = visit.mask | (visit.held_out > 0)
        assert not (ever & apart).any()
        assert not visit.held_kspace[apart].any()
        assert not visit.kspace[apart].any()
        used |= visit.held_out > 0
    np.testing.assert_array_equal(ever, seen)
    assert used.sum() > apart.sum()


@pytest.mark.slow
def test_training_on_an_undersampled_scan_and_reconstructing_it(fastmri, tmp_path):
    config, kspace = fastmri
    config = changed(
        config,
        train={
            **{"steps": 3, "log_every": 1, "image_every": 0, "batch_size": 2},
            **{"validate_every": 1, "keep_best": 1, "keep": 1},
            "validation_share": 0.2,
        },
    )
    loop.train(config, tmp_path / "run")
    found = rows(tmp_path / "run")
    assert [row["step"] for row in found] == [1, 2, 3]
    assert all(np.isfinite(row["validation_loss"]) for row in found)
    assert not any("psnr" in row for row in found)
    best = min(found, key=lambda row: row["validation_loss"])["step"]
    assert read_parameters(tmp_path / "run", "best")[2] == best
    scans, options = config.data.train, Options(checkpoint="best")
    record = reconstruct(tmp_path / "run", scans, tmp_path / "out", options)
    assert record["step"] == best
    with h5py.File(tmp_path / "out" / "one.h5") as file:
        image = file["reconstruction"][()]
    assert image.shape == (2, ROWS, ROWS)
    # What was measured stays: the zero-filled image is near.
    zero_filled = np.abs(crop(ifft(kspace["one.h5"]), (ROWS, ROWS)))
    assert np.linalg.norm(image - zero_filled) < np.linalg.norm(zero_filled)


def test_masks_take_little_memory_and_travel_to_workers(fastmri):
    """Whole columns are kept once for a scan, and workers get a copy."""
    _, sampler = opened(fastmri[0])
    kept = sampler.masks[ROWS, WIDTH]
    assert len({id(mask) for mask in kept.values()}) == 2
    assert all(mask.shape == (1, WIDTH) for mask in kept.values())
    copy = pickle.loads(pickle.dumps(sampler))
    assert isinstance(copy, measured.MeasuredSampler)
    np.testing.assert_array_equal(
        copy.fixed("one.h5", 1, 0), sampler.fixed("one.h5", 1, 0)
    )
    assert splits.splitter_of(CONFIG, copy).lines
