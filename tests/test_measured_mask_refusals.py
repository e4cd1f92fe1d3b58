"""Scans that the scanner undersampled: what cannot be trained on them."""

import h5py
import numpy as np
import pytest

from kst_jax.config_dict import from_dict
from kst_jax.data import opening
from kst_jax.data_config import CoilsConfig
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.training import loop
from tests import fastmri_files, mrd_files
from tests.measured_scans import (
    COLUMNS,
    CONFIG,
    MASKS,
    ROWS,
    WIDTH,
    fastmri_scans,
    opened,
    visits,
)
from tests.test_self_supervision import changed


@pytest.fixture
def fastmri(tmp_path):
    return fastmri_scans(tmp_path / "scans")


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


def test_a_full_scan_with_columns_that_its_scanner_never_measures_is_refused(tmp_path):
    images = np.random.default_rng(0).random((1, ROWS, ROWS))
    kspace = fastmri_files.measured(images, WIDTH, COLUMNS)
    path, mask = tmp_path / "scan.h5", np.ones(WIDTH, bool)
    fastmri_files.write(path, kspace, (ROWS, ROWS), COLUMNS, mask)
    config = changed(CONFIG, data={"train": str(path)})
    with pytest.raises(InputError, match=r"scan\.h5: slice 0 is fully sampled"):
        opened(config)


@pytest.mark.parametrize("columns", [10, 11, 16])
def test_a_full_raw_scan_with_finer_pixels_is_refused(tmp_path, columns):
    xml = mrd_files.header(recon=(12, columns))
    lines = mrd_files.lines(mrd_files.scan(coils=1)[1])
    path = mrd_files.write(tmp_path / "scan.mrd", lines, xml)
    config = changed(CONFIG, data={"train": str(path), "size": (12, columns)})
    with pytest.raises(InputError, match=r"scan\.mrd: slice 0 is fully sampled"):
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
