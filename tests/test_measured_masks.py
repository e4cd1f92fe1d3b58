"""Training on scans that the scanner undersampled, by the masks of their files."""

import contextlib
import dataclasses
import pickle

import h5py
import jax
import numpy as np
import pytest

from kst_jax.config import Config
from kst_jax.config_dict import from_dict
from kst_jax.data import measured, opening, pipeline, sensitivities, splits, volumes
from kst_jax.data_config import CoilsConfig, DataConfig, Selection
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.models.d5c5 import D5C5Config
from kst_jax.reconstruct import runner
from kst_jax.reconstruct.inputs import Undersampling, measure
from kst_jax.reconstruct.runner import Options, reconstruct
from kst_jax.runs.checkpoints import read_parameters
from kst_jax.training import loop
from kst_jax.training.validation import Validator
from tests import fastmri_files, mrd_files
from tests.fastmri_files import crop, fft, ifft
from tests.test_self_supervision import changed
from tests.test_training import rows

# The readout is oversampled twice; the scanner measured columns 2 to 21 of 24.
ROWS, WIDTH, COLUMNS = 16, 24, (2, 22)
MASKS = {
    "one": np.isin(np.arange(WIDTH), [0, 3, 6, 9, 11, 12, 13, 15, 18, 21, 23]),
    "two": np.isin(np.arange(WIDTH), [4, 8, 10, 11, 12, 13, 16, 20]),
}
CONFIG = Config(
    data=DataConfig(native=True, size=(ROWS, WIDTH)),
    mask=MaskConfig("measured"),
    model=D5C5Config(cascades=1, features=4),
    train=dataclasses.replace(
        Config().train, supervision="self", batch_size=1, stages=(0.0, 0.0, 1.0)
    ),
)


def padded(mask):
    """Without the columns that the scanner never measures."""
    inside = (np.arange(WIDTH) >= COLUMNS[0]) & (np.arange(WIDTH) < COLUMNS[1])
    return mask & inside


# Points of the scans' masks, the least and the most.
COUNTS = tuple(sorted(int(padded(mask).sum()) * ROWS for mask in MASKS.values()))


def write_fastmri(folder, slices=2):
    """Two scans, each with a mask of its own; returns the k-space by file."""
    rng, written = np.random.default_rng(0), {}
    for name, mask in MASKS.items():
        images = np.abs(rng.normal(size=(slices, ROWS, ROWS))) + np.hanning(ROWS)
        kspace = fastmri_files.measured(images, WIDTH, COLUMNS, seed=len(written))
        path = folder / f"{name}.h5"
        fastmri_files.write(path, kspace, (ROWS, ROWS), COLUMNS, mask, patient_id=name)
        written[path.name] = kspace * padded(mask)
    return written


def write_mrd(folder, coils=1, calibration=False):
    """A scan of two repetitions, which skip other lines each."""
    written = []
    _, kspace = mrd_files.scan(coils)
    for repetition, steps in enumerate(([0, 2, 4, 5, 6, 8], [1, 3, 4, 5, 6, 7, 9])):
        written += mrd_files.lines(kspace, steps, repetition=repetition)
    if calibration:
        steps = range(2, 8)
        written += mrd_files.lines(kspace, steps, [20])
    return mrd_files.write(folder / "scan.mrd", written)


@pytest.fixture
def fastmri(tmp_path):
    (tmp_path / "scans").mkdir()
    kspace = write_fastmri(tmp_path / "scans")
    return changed(CONFIG, data={"train": str(tmp_path / "scans")}), kspace


def opened(config):
    source, _ = opening.open_sources(config)
    return source, opening.sampler_of(source, config)


def visits(source, config, sampler, count):
    stream = pipeline.training_batches(source, config, sampler)
    with contextlib.closing(stream):
        for _ in range(count):
            yield jax.tree.map(lambda x: np.asarray(x[0]), next(stream))


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
    slices = [measure(volume, index, config, Undersampling()) for index in (0, 1)]
    slices = runner._compressed(slices, 2)
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


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"train": {"supervision": "target"}}, r"train\.supervision='target'.*'self'"),
        ({"data": {"native": False}}, r"data\.native=False.*True if mask\.kind"),
        ({"train": {"weighted": True}}, r"train\.weighted=True.*nobody knows"),
        ({"mask": {"calibration": 4}}, r"mask\.calibration=4.*the scan sets"),
        (
            {"data": {"coils": {"count": 2, "combine": True}}},
            r"data\.coils\.combine=True.*False if mask\.kind",
        ),
        ({"train": {"validation_share": 0.2}}, r"validation_share.*validate_every"),
        ({"train": {"validation_share": 1.0}}, r"validation_share=1\.0.*below 1"),
    ],
)
def test_settings_that_do_not_suit_are_refused(sections, message):
    values = {
        "data": {"native": True} | sections.get("data", {}),
        "mask": {"kind": "measured"} | sections.get("mask", {}),
        "train": {"supervision": "self"} | sections.get("train", {}),
    }
    with pytest.raises(InputError, match=message):
        from_dict(values)


def test_only_masks_that_stay_can_be_validated_on_by_points(tmp_path):
    config = changed(
        CONFIG,
        mask=MaskConfig("uniform_1d"),
        train={"validation_share": 0.2, "validate_every": 1},
    )
    with pytest.raises(InputError, match=r"validation_share.*mask\.kind='measured'"):
        loop.train(config, tmp_path)


def test_undersampled_scans_name_the_way_to_train_on_them(fastmri):
    config = changed(
        fastmri[0],
        mask=MaskConfig("fastmri_random", 2.0, center_fraction=0.2),
        train={"supervision": "target"},
    )
    with pytest.raises(InputError, match=r"one\.h5.*mask\.kind=measured.*native=True"):
        opening.open_sources(config)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones(WIDTH, bool), r"scan\.h5: slice 0 is fully sampled.*Leave it out"),
        (None, r"scan\.h5: slice 0 is fully sampled"),
        (
            np.isin(np.arange(WIDTH), [11, 12]),
            r"scan\.h5, slice 0: config\.train\.held_out=0\.4 leaves none of its 2 "
            r"columns .*raise",
        ),
    ],
)
def test_scans_that_cannot_be_split_are_refused(tmp_path, mask, message):
    kspace = np.random.default_rng(0).normal(size=(1, ROWS, WIDTH)) * (1 + 0j)
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = (kspace if mask is None else kspace * mask).astype("c8")
        if mask is not None:
            file["mask"] = mask
    config = changed(CONFIG, data={"train": str(tmp_path / "scan.h5")})
    with pytest.raises(InputError, match=message):
        opened(config)


def test_a_share_that_validates_by_nothing_is_refused(fastmri):
    config = changed(fastmri[0], train={"validate_every": 1, "validation_share": 0.01})
    with pytest.raises(InputError, match=r"train\.validation_share=0\.01 leaves none"):
        opened(config)


def test_coils_are_not_simulated_for_an_undersampled_scan(fastmri):
    config = changed(fastmri[0], data={"coils": CoilsConfig(2, calibration=12)})
    with pytest.raises(InputError, match=r"one\.h5: .*one coil.*coils\.count=1"):
        opened(config)


def test_points_of_an_oversampled_readout_are_refused(tmp_path):
    mask = np.random.default_rng(0).random((2 * ROWS, WIDTH)) < 0.4
    kspace = fastmri_files.measured(np.ones((1, ROWS, ROWS)), WIDTH)
    path = tmp_path / "scan.h5"
    fastmri_files.write(path, kspace, (ROWS, ROWS), mask=mask)
    config = changed(CONFIG, data={"train": str(path)})
    with pytest.raises(InputError, match=r"scan\.h5: slice 0: .*one by one"):
        opened(config)


def test_a_mask_that_contradicts_the_kspace_is_refused(fastmri, tmp_path):
    config, _ = fastmri
    for name in MASKS:
        with h5py.File(tmp_path / "scans" / f"{name}.h5", "r+") as file:
            file["mask"][10] = not file["mask"][10]
    source, sampler = opened(config)
    with pytest.raises(InputError, match=r"(one|two)\.h5: slice . ?.*column|calls"):
        list(visits(source, config, sampler, 1))


def test_nobody_is_set_apart_for_testing_where_there_is_nothing_to_score(fastmri):
    config = fastmri[0]
    train, test = opening.open_sources(config)
    assert train.subjects == ("one", "two")
    assert len(test) == 0
    with pytest.raises(InputError, match=r"no masks.*another --config\.mask\.kind"):
        opening.open_sampler(config)


def test_test_scans_must_be_fully_sampled(fastmri, tmp_path):
    config = changed(fastmri[0], data={"test": str(tmp_path / "scans" / "two.h5")})
    with pytest.raises(InputError, match=r"two\.h5.*undersampled"):
        opening.open_sources(config)


def test_one_person_can_be_validated_on_by_points(fastmri, tmp_path):
    config = changed(
        fastmri[0],
        data={"train": str(tmp_path / "scans" / "one.h5")},
        train={"validate_every": 1},
    )
    train, test = opening.open_sources(config)
    with pytest.raises(InputError, match=r"only one;.*train\.validation_share=0\.2"):
        opening.set_validation_apart(config, train, test)


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
