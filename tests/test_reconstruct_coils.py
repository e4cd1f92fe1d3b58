"""kst-reconstruct of several coils: CG-SENSE with maps of the scan's own centre."""

import json

import h5py
import numpy as np
import pytest

from kst_jax import coils
from kst_jax.birdcage import birdcage
from kst_jax.data import finding, volumes
from kst_jax.data_config import Selection
from kst_jax.reconstruct.runner import Options, reconstruct
from tests import fastmri_files, mrd_files, test_bart
from tests.programs import refused, run_here

PROGRAM = "kst-reconstruct"
SIZE = (48, 48)


@pytest.fixture(scope="module")
def truth():
    """Two slices of the bundled person with a phase, and what eight coils see of it."""
    images = fastmri_files.slices_of("demo:test", SIZE, (0.5, 0.54))[:2]
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in SIZE), indexing="ij")
    images = images * np.exp(1j * (rows + columns**2))
    return images, birdcage(3, SIZE, 8)


@pytest.fixture(scope="module")
def kspace(truth):
    images, maps = truth
    return fastmri_files.fft(images[:, None] * maps).astype(np.complex64)


@pytest.fixture(scope="module")
def mask():
    """Every second column, and 16 in the centre: 32 of 48."""
    mask = np.zeros(48, bool)
    mask[::2] = mask[16:32] = True
    return mask


@pytest.fixture(scope="module")
def scans(kspace, mask, tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    with h5py.File(folder / "fastmri.h5", "w") as file:
        file["kspace"], file["mask"] = kspace * mask, mask
    test_bart.write(folder / "bart.cfl", kspace * mask)
    return folder


@pytest.fixture(scope="module")
def out(scans, tmp_path_factory):
    out = tmp_path_factory.mktemp("images") / "out"
    done = run_here(PROGRAM, "sense", scans, out, "--batch_size=3")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    return out


def image_of(out, name):
    with h5py.File(out / f"{name}.h5") as file:
        return file["reconstruction"][()]


def error(image, target):
    """Relative, where there is an object: maps are zero outside it."""
    inside = target > 0.1 * target.max()
    return np.linalg.norm((image - target)[inside]) / np.linalg.norm(target[inside])


def test_the_image_is_restored_in_the_scans_units(out, truth, kspace, mask):
    target = np.abs(truth[0])
    zero_filled = fastmri_files.ifft(kspace * mask)
    zero_filled = np.sqrt((np.abs(zero_filled) ** 2).sum(axis=1))
    found = image_of(out, "fastmri")
    assert found.shape == target.shape
    assert error(found, target) < 0.02
    assert error(zero_filled, target) > 0.08


def test_both_layouts_give_one_image(out):
    np.testing.assert_allclose(
        image_of(out, "bart"), image_of(out, "fastmri"), rtol=1e-6
    )


def test_the_record_names_the_method(out):
    record = json.loads((out / "reconstruct.json").read_text())
    assert (record["run"], record["step"]) == ("sense", None)
    assert record["scans"]["fastmri.h5"]["acceleration"] == pytest.approx(
        48 / 32, abs=1e-3
    )


def test_slices_do_not_depend_on_the_batch(scans, out, tmp_path):
    scan = str(scans / "fastmri.h5")
    reconstruct("sense", scan, tmp_path / "one", Options(batch_size=1))
    np.testing.assert_allclose(
        image_of(tmp_path / "one", "fastmri"), image_of(out, "fastmri"), rtol=1e-4
    )


def test_without_calibration_lines_maps_cannot_be_estimated(kspace, tmp_path):
    mask = np.arange(48) % 4 == 0
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"], file["mask"] = kspace * mask, mask
    message = refused(PROGRAM, "sense", tmp_path / "scan.h5", tmp_path / "out")
    assert "scan.h5: slice 0: sensitivity maps need" in message
    assert "calibration" in message


def test_fully_sampled_coils_are_combined(truth, kspace, tmp_path):
    with h5py.File(tmp_path / "scan.h5", "w") as file:
        file["kspace"] = kspace
    reconstruct("sense", str(tmp_path / "scan.h5"), tmp_path / "out")
    assert error(image_of(tmp_path / "out", "scan"), np.abs(truth[0])) < 0.02


def test_raw_files_of_the_standards_own_tools(shared, tmp_path):
    """Four repetitions, whose 24 lines lack the centre that 16 others measured."""
    scans = [shared / "data" / f"{name}.h5" for name in ("mrd_4x", "mrd_full")]
    reconstruct("sense", ",".join(map(str, scans)), tmp_path / "out")
    images = [
        image for scan in scans for image in image_of(tmp_path / "out", scan.stem)
    ]
    assert len(images) == 5
    scanned = [volumes.open_scan(scan, Selection()) for scan in scans]
    zero_filled = [
        fastmri_files.ifft(volume.sample(index).kspace)
        for volume in scanned
        for index in volume.slices
    ]
    with h5py.File(scans[1]) as file:
        truth = file["dataset/coil_images"][0]
    truth = (truth["real"] + 1j * truth["imag"])[:, :, 48:144].swapaxes(1, 2)
    truth = np.sqrt((np.abs(truth) ** 2).sum(axis=0))

    def error_of(image):
        scale = np.vdot(image, truth) / np.vdot(image, image)
        return np.linalg.norm(scale * image - truth) / np.linalg.norm(truth)

    for image, aliased in zip(images[:4], zero_filled[:4], strict=True):
        together = np.sqrt((np.abs(aliased) ** 2).sum(axis=0))
        assert error_of(image) < 0.6 * error_of(together)
    assert error_of(images[4]) < 0.1  # noise alone


@pytest.mark.slow
def test_the_measured_brain_is_as_good_as_barts(shared, tmp_path):
    """With maps of BART's its CG-SENSE reaches 27.69 dB; the same slice and mask.

    All layouts give the same image.
    """
    mask = np.load(shared / "goldens" / "bart_brain.npz")["mask"]
    with h5py.File(shared / "data" / "brain_vfa_multicoil.h5") as file:
        kspace = file["kspace"][1]
    with h5py.File(tmp_path / "fastmri.h5", "w") as file:
        file["kspace"], file["mask"] = (kspace * mask)[None], mask
    test_bart.write(tmp_path / "bart.cfl", (kspace * mask)[None])
    size = kspace.shape[1:]
    xml = mrd_files.header(
        encoded=size, recon=size, field=size, shown=size, last=223, centre=112
    )
    lines = mrd_files.lines(kspace, np.flatnonzero(mask))
    mrd_files.write(tmp_path / "raw.mrd", lines, xml)
    reconstruct("sense", str(tmp_path), tmp_path / "out")
    maps = np.asarray(coils.espirit(kspace))
    target = np.abs((maps.conj() * fastmri_files.ifft(kspace)).sum(axis=0))
    found = image_of(tmp_path / "out", "fastmri")[0]
    scale = (found * target).sum() / (found**2).sum()
    mean_square = np.mean((scale * found - target) ** 2)
    assert 10 * np.log10(np.ptp(target) ** 2 / mean_square) > 29
    for name in ("bart", "raw"):
        other = image_of(tmp_path / "out", name)[0]
        assert np.abs(other - found).max() < 1e-4 * found.max(), name


@pytest.mark.slow
def test_the_bundled_measured_slice(tmp_path):
    """Against the fully sampled slice, each scaled to fit it."""
    reconstruct("sense", "demo:coils", tmp_path / "out")
    scan = finding.DEMO["demo:coils"]
    with h5py.File(scan) as file:
        target = file["reconstruction_rss"][0].astype(np.float64)
        zero_filled = fastmri_files.ifft(file["kspace"][0])
    zero_filled = np.linalg.norm(zero_filled, axis=0)

    def decibels(image):
        image = image * (np.vdot(image, target) / np.vdot(image, image))
        return 10 * np.log10(target.max() ** 2 / np.mean((image - target) ** 2))

    found = image_of(tmp_path / "out", scan.stem)[0]
    assert decibels(found) > decibels(zero_filled) + 1
