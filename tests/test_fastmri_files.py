"""fastMRI's files: measured columns, targets and attributes; scans that differ."""

from contextlib import nullcontext

import h5py
import numpy as np
import pytest

from kst_jax.data import volumes
from kst_jax.data.readers import fastmri
from kst_jax.data_config import Selection
from kst_jax.errors import InputError
from tests import fastmri_files

RNG = np.random.default_rng(0)
IMAGES = RNG.uniform(size=(3, 12, 10))


def opened(path):
    return volumes.open_scan(path, Selection())


@pytest.fixture
def scan(tmp_path):
    kspace = fastmri_files.measured(IMAGES, 16, (2, 15))
    return fastmri_files.write(
        tmp_path / "knee.h5", kspace, (12, 10), (2, 15), acquisition="CORPD_FBK"
    )


def test_a_scan_tells_its_target_columns_and_acquisition(scan):
    volume = opened(scan)
    assert (volume.shape, volume.matrix) == ((24, 16), (12, 10))
    assert volume.acquisition == "CORPD_FBK"
    assert volume.geometry.columns == (2, 15)
    sample = volume.sample(1)
    with h5py.File(scan) as file:
        np.testing.assert_array_equal(sample.target, file["reconstruction_esc"][1])


def test_measured_columns_follow_from_the_header_as_in_fastmri(tmp_path):
    """A knee's header: encoded 368, centre 180, last 359."""
    xml = fastmri_files.header((640, 368), (320, 320)).replace(
        "<maximum>367", "<maximum>359"
    )
    xml = xml.replace("<center>184", "<center>180")
    with h5py.File(tmp_path / "knee.h5", "w") as file:
        file["kspace"] = np.ones((1, 640, 368), np.complex64)
        file["ismrmrd_header"] = xml
    padding_left = 368 // 2 - 180
    padding_right = padding_left + 359 + 1
    volume = opened(tmp_path / "knee.h5")
    assert volume.geometry.columns == (padding_left, padding_right)
    assert volume.matrix == (320, 320)


def test_without_a_header_images_are_of_the_k_spaces_size(tmp_path):
    with h5py.File(tmp_path / "plain.h5", "w") as file:
        file["kspace"] = np.ones((1, 8, 9), np.complex64)
    volume = opened(tmp_path / "plain.h5")
    assert volume.matrix == volume.shape == (8, 9)
    assert volume.geometry is None
    assert volume.sample(0).target is None


def test_targets_of_the_combined_coils_come_second(scan):
    with h5py.File(scan, "a") as file:
        file["reconstruction_rss"] = 2 * file["reconstruction_esc"][()]
        wanted = file["reconstruction_esc"][1]
    np.testing.assert_array_equal(opened(scan).sample(1).target, wanted)
    with h5py.File(scan, "a") as file:
        del file["reconstruction_esc"]
    np.testing.assert_array_equal(opened(scan).sample(1).target, 2 * wanted)


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (np.ones((3, 12, 9), "f4"), "12 x 9, but the header tells of 12 x 10"),
        (np.ones((2, 12, 10), "f4"), "has shape .2, 12, 10., but .* 3 slices"),
        (np.ones((3, 12, 10), "c8"), "has type complex64"),
        (np.full((3, 12, 10), np.nan, "f4"), "slice 1 of 'reconstruction_esc' holds"),
    ],
)
def test_targets_that_do_not_fit_are_refused(scan, targets, message):
    with h5py.File(scan, "a") as file:
        del file["reconstruction_esc"]
        file["reconstruction_esc"] = targets
    with pytest.raises(InputError, match=message):
        opened(scan).sample(1)


def test_a_header_with_columns_that_no_scan_has_is_refused(scan):
    with h5py.File(scan, "a") as file:
        xml = file["ismrmrd_header"][()].decode()
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = xml.replace("<center>6", "<center>600")
    with pytest.raises(InputError, match="measured columns from -592"):
        opened(scan)


@pytest.mark.parametrize(
    ("values", "refused"),
    [(1, False), (1e30, False), (3e38, True), (np.nan, True), (1j * np.inf, True)],
)
def test_a_sample_is_refused_if_its_image_would_be(values, refused):
    kspace = np.ones((16, 12), np.complex64).T  # not in order
    kspace[3:9] = values
    for check in (fastmri.require_transformable, fastmri.to_image):
        with pytest.raises(InputError, match="where") if refused else nullcontext():
            check(kspace, "where")
