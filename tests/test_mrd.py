"""ISMRMRD files: what is read."""

import pickle
import subprocess
import sys

import h5py
import nibabel as nib
import numpy as np
import pytest

from kst_jax.data import volumes
from kst_jax.data_config import DataConfig, Selection
from kst_jax.doctor.examination import examine, patient_of
from kst_jax.errors import InputError
from kst_jax.reconstruct import outputs
from kst_jax.reconstruct.outputs import Images
from tests import measured_scans
from tests.fastmri_files import fft, ifft
from tests.mrd_files import header, line, lines, scan, write
from tests.scans import write_h5
from tests.test_bart import write as write_pair

IMAGES, KSPACE = scan()


def opened(path):
    return volumes.open_scan(path, Selection())


def images_of(path):
    volume = opened(path)
    return [ifft(volume.sample(index).kspace) for index in volume.slices]


@pytest.mark.parametrize("name", ["scan.h5", "scan.mrd", "SCAN.MRD"])
def test_a_full_scan_gives_its_images(tmp_path, name):
    volume = opened(write(tmp_path / name, lines(KSPACE)))
    assert (volume.coils, volume.shape, volume.matrix) == (3, (12, 10), (12, 10))
    assert (volume.patient, volume.acquisition) == ("P7", "t1_tse")
    assert volume.pixel == (10.0, 10.0)
    assert not volume.undersampled
    sample = pickle.loads(pickle.dumps(volume)).sample(0)
    assert sample.mask.shape == (10,)
    np.testing.assert_allclose(ifft(sample.kspace), IMAGES, atol=1e-5)
    np.testing.assert_allclose(volume.read(0), IMAGES, atol=1e-5)


def test_one_coil_is_a_scan_without_coils(tmp_path):
    path = write(tmp_path / "a.mrd", lines(KSPACE[:1]))
    assert volumes.open_volume(path, Selection()).coils == 1
    np.testing.assert_allclose(images_of(path)[0], IMAGES[0], atol=1e-5)


def test_lines_that_were_not_measured_are_zero(tmp_path):
    path = write(tmp_path / "a.mrd", lines(KSPACE, [0, 3, 4, 5, 8]))
    sample = opened(path).sample(0)
    assert list(np.flatnonzero(sample.mask)) == [0, 3, 4, 5, 8]
    np.testing.assert_allclose(sample.kspace, fft(IMAGES) * sample.mask, atol=1e-5)
    with pytest.raises(InputError, match="lacks lines"):
        volumes.open_volume(path, Selection())


def test_calibration_lines_serve_the_sensitivities_alone(tmp_path):
    acquired = [
        *lines(KSPACE, [0, 4, 8]),
        *lines(KSPACE, [5], flags=[20]),
        *lines(KSPACE, [6], flags=[21]),
    ]
    sample = opened(write(tmp_path / "a.mrd", acquired)).sample(0)
    assert list(np.flatnonzero(sample.mask)) == [0, 4, 6, 8]
    assert list(np.flatnonzero(sample.calibration.any((0, 1)))) == [5, 6]
    np.testing.assert_allclose(
        sample.calibration[..., 5:7], fft(IMAGES)[..., 5:7], atol=1e-5
    )


def test_one_calibration_serves_all_repetitions(tmp_path):
    acquired = [
        *lines(KSPACE, [0, 4, 8]),
        *lines(KSPACE, [1, 5, 9], repetition=1),
        *lines(KSPACE, [5], flags=[20]),
    ]
    volume = opened(write(tmp_path / "a.mrd", acquired))
    assert volume.depth == 2
    for index in (0, 1):
        assert volume.sample(index).calibration[..., 5].any()


@pytest.mark.parametrize("flag", [23, 24, 26, 27, 28, 29, 30, 31])
def test_service_lines_are_passed_over(tmp_path, flag):
    acquired = [*lines(KSPACE), *lines(9 * KSPACE, [2, 5], flags=[flag])]
    # Their sizes may be any.
    acquired.append(line(np.ones((5, 7)), 4000, [flag]))
    path = write(tmp_path / "a.mrd", acquired)
    np.testing.assert_allclose(images_of(path)[0], IMAGES, atol=1e-5)


def test_averages_are_averaged(tmp_path):
    acquired = [
        *lines(KSPACE + 1),
        *lines(KSPACE - 1, average=1),
        *lines(KSPACE, [5], average=2),
    ]
    path = write(tmp_path / "a.mrd", acquired)
    np.testing.assert_allclose(images_of(path)[0], IMAGES, atol=1e-5)


def test_repetitions_and_contrasts_are_images_of_their_own(tmp_path):
    scans = [scan(seed=seed) for seed in range(6)]
    counters = [
        {"contrast": c, "repetition": r, "slice": s}
        for c, r, s in [
            (0, 0, 0),
            (0, 0, 1),
            (0, 1, 0),
            (0, 1, 1),
            (1, 0, 0),
            (1, 0, 1),
        ]
    ]
    acquired = [
        one
        for number in (3, 0, 5, 1, 4, 2)  # in any order
        for one in lines(scans[number][1], **counters[number])
    ]
    path = write(tmp_path / "a.mrd", acquired)
    assert opened(path).geometry.slices == 2
    for image, (truth, _) in zip(images_of(path), scans, strict=True):
        np.testing.assert_allclose(image, truth, atol=1e-5)


@pytest.mark.parametrize("centre", [11, 12])  # of the line as stored, or as turned
def test_reversed_lines_are_turned(tmp_path, centre):
    acquired = [
        *lines(KSPACE, range(0, 10, 2)),
        *lines(KSPACE[:, ::-1], range(1, 10, 2), flags=[22], center_sample=centre),
    ]
    path = write(tmp_path / "a.mrd", acquired)
    np.testing.assert_allclose(images_of(path)[0], IMAGES, atol=1e-5)


def test_discarded_samples_are_no_data(tmp_path):
    junk = np.full((3, 2, 10), 99 + 9j)
    acquired = lines(
        np.concatenate([junk, KSPACE, junk, junk], axis=1),
        discard_pre=2,
        discard_post=4,
        center_sample=14,
    )
    path = write(tmp_path / "a.mrd", acquired)
    np.testing.assert_allclose(images_of(path)[0], IMAGES, atol=1e-5)


@pytest.mark.parametrize("turned", [False, True])
def test_a_partial_echo_lies_where_its_centre_says(tmp_path, turned):
    """Without oversampling, so that rows of the sample are those of the file."""
    kspace, last = fft(IMAGES).astype("c8"), 12 - 4 - 1
    part = kspace[:, 4:]
    centre, flags = 6 - 4, []
    if turned:
        part, centre, flags = part[:, ::-1], last - (6 - 4), [22]
    xml = header(encoded=(12, 10), field=(120, 100))
    acquired = lines(part, center_sample=centre, flags=flags)
    volume = opened(write(tmp_path / "a.mrd", acquired, xml))
    sample = volume.sample(0)
    assert volume.undersampled
    assert sample.mask.shape == (12, 10)
    assert not sample.mask[:4].any()
    assert sample.mask[4:].all()
    np.testing.assert_allclose(sample.kspace, kspace * sample.mask, atol=1e-5)


def test_a_partial_echo_of_an_oversampled_readout(tmp_path):
    acquired = lines(KSPACE[:, 8:], center_sample=4)
    sample = opened(write(tmp_path / "a.mrd", acquired)).sample(0)
    assert list(np.flatnonzero(sample.mask.all(1))) == list(range(4, 12))
    assert not sample.kspace[:, :4].any()


def test_partial_fourier_lies_where_its_centre_says(tmp_path):
    """Steps start at the first measured line, so the centre is below the middle."""
    acquired = [line(KSPACE[..., n], n - 3) for n in range(3, 10)]
    path = write(tmp_path / "a.mrd", acquired, header(centre=2, last=6))
    sample = opened(path).sample(0)
    assert list(np.flatnonzero(sample.mask)) == list(range(3, 10))
    np.testing.assert_allclose(sample.kspace, fft(IMAGES) * sample.mask, atol=1e-5)


def test_an_image_of_finer_pixels_is_padded_in_kspace(tmp_path):
    path = write(tmp_path / "a.mrd", lines(KSPACE), header(recon=(18, 16)))
    volume = opened(path)
    sample = volume.sample(0)
    assert sample.kspace.shape == (3, 18, 16)
    assert (volume.matrix, sample.geometry.columns) == ((18, 16), (3, 13))
    assert volume.pixel == (120 / 18, 100 / 16)
    np.testing.assert_allclose(sample.kspace[:, 3:15, 3:13], fft(IMAGES), atol=1e-5)
    assert np.count_nonzero(sample.kspace) == 3 * 12 * 10


def test_the_field_of_view_of_the_phase_encoding_stays_in_kspace(tmp_path):
    path = write(
        tmp_path / "a.mrd", lines(KSPACE), header(recon=(12, 8), shown=(120, 80))
    )
    volume = opened(path)
    assert (volume.shape, volume.matrix) == ((12, 10), (12, 8))


def test_noise_becomes_white(tmp_path):
    rng = np.random.default_rng(1)
    mixing = rng.normal(size=(3, 3)) + 1j * rng.normal(size=(3, 3))

    def noise(count):
        white = rng.normal(size=(2, 3, count)) / np.sqrt(2)
        return mixing @ (white[0] + 1j * white[1])

    acquired = [line(noise(20_000), 0, [19])]
    acquired += [line(noise(24), n, repetition=r) for n in range(10) for r in range(20)]
    volume = opened(write(tmp_path / "a.mrd", acquired))
    found = np.stack([volume.sample(index).kspace for index in volume.slices], axis=1)
    covariance = np.cov(found.reshape(3, -1))
    np.testing.assert_allclose(covariance, np.eye(3), atol=0.08)


def test_an_oblique_slice_lies_where_the_scanner_says(tmp_path):
    """A bright pixel of each slice is at its place in the patient, after NIfTI."""
    rotation = np.linalg.qr(np.random.default_rng(3).normal(size=(3, 3)))[0]
    read, phase, across = rotation.T
    centre = np.array([5.0, -17.0, 40.0])
    acquired, places = [], []
    pixels = [(2, 7), (9, 1), (4, 4)]
    for number, (row, column) in enumerate(pixels):
        image = np.zeros((1, 24, 10), "c8")
        image[0, row + 6, column] = 1  # the readout is oversampled
        middle = centre + 6.5 * number * across
        places.append(middle + (row - 6) * 10 * read + (column - 5) * 10 * phase)
        acquired += lines(
            fft(image),
            slice=2 - number,  # its index runs the other way
            position=tuple(middle),
            read_dir=tuple(read),
            phase_dir=tuple(phase),
            slice_dir=tuple(across),
        )
    volume = opened(write(tmp_path / "a.mrd", acquired))
    assert volume.doubts == ()
    images = np.stack(images_of(volume.path))
    outputs.write(tmp_path / "a.nii", Images(images, volume.geometry), "nifti", False)
    nifti = nib.load(tmp_path / "a.nii")
    np.testing.assert_allclose(nifti.header.get_zooms(), (10, 10, 6.5), rtol=1e-5)
    assert nifti.header["sform_code"] > 0
    for number, place in enumerate(places):
        values = nifti.get_fdata()[..., number]
        voxel = [*np.unravel_index(values.argmax(), values.shape), number]
        found = nib.affines.apply_affine(nifti.affine, voxel)
        np.testing.assert_allclose(found, place * [-1, -1, 1], atol=1e-3)


def test_repetitions_are_volumes_of_a_nifti(tmp_path):
    acquired = [
        one
        for r in range(3)
        for s in range(2)
        for one in lines(KSPACE[:1] * (1 + 10 * r + s), repetition=r, slice=s)
    ]
    volume = opened(write(tmp_path / "a.mrd", acquired))
    images = np.stack(images_of(volume.path))
    outputs.write(tmp_path / "a.nii", Images(images, volume.geometry), "nifti", False)
    values = nib.load(tmp_path / "a.nii").get_fdata()
    assert values.shape == (10, 12, 2, 3)
    truth = np.abs(IMAGES[0]).T[:, ::-1]
    np.testing.assert_allclose(values[..., 1, 2], 22 * truth, rtol=1e-4, atol=1e-4)


def test_three_layouts_give_the_same_kspace(tmp_path):
    mask = np.isin(np.arange(10), [0, 3, 4, 5, 8])
    kspace = (fft(IMAGES) * mask).astype("c8")
    xml = header(encoded=(12, 10), field=(120, 100))
    write(tmp_path / "a.mrd", lines(kspace, np.flatnonzero(mask)), xml)
    write_pair(tmp_path / "b.cfl", kspace[None])
    write_h5(tmp_path / "c.h5", kspace[None])
    for name in ("a.mrd", "b.cfl", "c.h5"):
        found = opened(tmp_path / name).sample(0).kspace
        np.testing.assert_allclose(found, kspace, atol=1e-5)


def test_silent_directions_are_told(tmp_path):
    volume = opened(write(tmp_path / "a.mrd", lines(KSPACE)))
    assert volume.geometry.affine is None
    assert "voxel sizes alone" in volume.doubts[0]


def phantom(path):
    with h5py.File(path) as file:
        truth = file["dataset/coil_images"][0]
    wide = truth["real"] + 1j * truth["imag"]
    return wide[:, :, 48:144].swapaxes(1, 2)  # (phase, readout) to rows of readout


def test_the_standards_own_file_holds_its_truth_and_noise(shared):
    path = shared / "data/mrd_full.h5"
    (image,) = images_of(path)
    error = image - phantom(path)
    assert abs(error.mean()) < 1e-3
    # The generator's noise is 0.02 in the real and in the imaginary part.
    assert np.std(error.real) == pytest.approx(0.02, rel=0.02)
    assert np.std(error.imag) == pytest.approx(0.02, rel=0.02)


def test_the_standards_own_repetitions_fill_kspace(shared):
    volume = opened(shared / "data/mrd_4x.h5")
    samples = [volume.sample(index) for index in volume.slices]
    for shift, sample in enumerate(samples):
        assert list(np.flatnonzero(sample.mask)) == list(range(shift, 96, 4))
        measured = np.flatnonzero(sample.calibration.any((0, 1)))
        assert list(measured) == list(range(40, 56))
    together = sum(sample.kspace for sample in samples)
    error = ifft(together) - phantom(volume.path)
    assert np.std(error.real) == pytest.approx(0.02, rel=0.02)


def test_the_doctor_tells_how_a_scan_was_made(tmp_path):
    noise = np.random.default_rng(0).normal(size=(3, 99))
    acquired = [
        line(noise, 0, [19]),
        *lines(KSPACE, [0, 4, 8]),
        *lines(KSPACE, [5], flags=[20]),
        *lines(KSPACE, [6], flags=[21]),
        *lines(KSPACE, [1, 2], flags=[23]),
    ]
    path = write(tmp_path / "a.h5", acquired)
    found = examine(path, DataConfig(), Selection())
    notes = [one.what for one in found.findings if one.level == "note"]
    assert notes == [
        "3 coils; a noise scan makes them white.",
        "the readout is oversampled 2 times.",
        "2.5 times undersampled; 2 columns for calibration.",
        "acquisitions with flags: 1 noise, 1 calibration alone, 1 calibration and "
        "image, 2 navigator.",
    ]
    assert (found.kind, found.coils) == ("ISMRMRD", 3)
    assert patient_of(path) == "P7"


def test_threads_may_read_one_file(tmp_path):
    """In a process of its own: HDF5 used to crash there."""
    path = measured_scans.write_mrd(tmp_path, coils=4, calibration=True)
    program = f"""
import pathlib
from concurrent.futures import ThreadPoolExecutor
from kst_jax.data import volumes
from kst_jax.data_config import Selection

volume = volumes.open_scan(pathlib.Path({str(path)!r}), Selection())
with ThreadPoolExecutor(4) as pool:
    found = list(pool.map(lambda n: volume.sample(n % 2).kspace.sum(), range(200)))
assert len(set(found)) == 2
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
