"""kst-reconstruct: what it makes of undersampled scans, and what it warns of."""

import dataclasses
import json

import h5py
import matplotlib.image
import nibabel as nib
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio

from kst_jax import fourier
from kst_jax.config import Config
from kst_jax.data import finding, samples, sources, transforms, volumes
from kst_jax.data.samples import Sample
from kst_jax.data_config import AugmentConfig, DataConfig, Selection
from kst_jax.mask_config import MaskConfig
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import KSpaceTransformer, reconstruct_slice
from kst_jax.reconstruct import inputs
from kst_jax.reconstruct.inputs import Undersampling
from kst_jax.reconstruct.runner import Options, reconstruct
from kst_jax.runs import fields_of_view
from kst_jax.runs.checkpoints import write_parameters
from tests import fastmri_files
from tests.conftest import ROOT
from tests.fastmri_files import fft, ifft
from tests.programs import refused, run_here
from tests.references import make_kst_tiny

PROGRAM = "kst-reconstruct"
RNG = np.random.default_rng(0)
SLICES, SIZE = 6, (16, 16)
COLUMNS = np.arange(16) % 3 != 0
HEADER = """<?xml version="1.0"?>
<ismrmrdHeader xmlns="http://www.ismrm.org/ISMRMRD"><encoding>
<encodedSpace><matrixSize><x>32</x><y>16</y><z>1</z></matrixSize>
<fieldOfView_mm><x>64</x><y>24</y><z>5</z></fieldOfView_mm></encodedSpace>
<reconSpace><matrixSize><x>16</x><y>12</y><z>1</z></matrixSize>
<fieldOfView_mm><x>32</x><y>18</y><z>5</z></fieldOfView_mm></reconSpace>
</encoding></ismrmrdHeader>"""


def kspace_of(shape=(SLICES, *SIZE), seed=1):
    rng = np.random.default_rng(seed)
    return (rng.normal(size=shape) + 1j * rng.normal(size=shape)).astype(np.complex64)


def write(path, kspace, mask=None, header=None):
    with h5py.File(path, "w") as file:
        file["kspace"] = kspace
        if mask is not None:
            file["mask"] = mask
        if header is not None:
            file["ismrmrd_header"] = header
    return path


def config_of(**data):
    return Config(
        data=DataConfig(train="knee.h5", size=SIZE, **data),
        mask=MaskConfig(kind="uniform_1d", acceleration=1.6),
        model=KSTConfig(
            width=8,
            heads=2,
            mlp=8,
            encoder_layers=1,
            lr_layers=1,
            hr_layers=1,
            lr_size=(8, 8),
            refinement_features=4,
        ),
    )


def network(folder, **data):
    """A checkpoint of a small network with random parameters."""
    config = config_of(**data)
    model = KSpaceTransformer(config.model)
    params = make_kst_tiny.weights(model, make_kst_tiny.example())
    write_parameters(folder, params, config)
    return model, params


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "run"
    return folder, *network(folder)


@pytest.fixture(scope="module")
def scan(tmp_path_factory):
    """A file as fastMRI's test files are: zeros where the mask samples nothing."""
    path = tmp_path_factory.mktemp("scans") / "file1.h5"
    return write(path, kspace_of() * COLUMNS, COLUMNS)


@pytest.fixture(scope="module")
def images(run, scan, tmp_path_factory):
    out = tmp_path_factory.mktemp("out")
    done = run_here(PROGRAM, run[0], scan, out, "--complex")
    assert done.returncode == 0, done.stderr
    assert "warning" not in done.stderr
    with h5py.File(out / "file1.h5") as file:
        return file["reconstruction"][()] * np.exp(1j * file["phase"][()])


def test_images_are_those_of_the_network(run, scan, images):
    """By hand: divided by the root mean square, reconstructed, multiplied."""
    _, model, params = run
    mask = np.broadcast_to(COLUMNS, SIZE)
    for measured, image in zip(kspace_of() * COLUMNS, images, strict=True):
        scale = np.sqrt(np.mean(np.abs(ifft(measured)) ** 2) / 2)
        channels = np.stack([measured.real, measured.imag], -1) / scale
        output = reconstruct_slice(model, params, channels.astype(np.float32), mask)
        wanted = np.asarray(fourier.to_complex(output.image[0])) * scale
        np.testing.assert_allclose(image, wanted, atol=1e-4)


def test_measured_values_stay(images):
    found = fft(images)[..., COLUMNS]
    np.testing.assert_allclose(found, kspace_of()[..., COLUMNS], atol=1e-4)
    assert np.abs(fft(images)[..., ~COLUMNS]).max() > 1e-3  # and others are filled in


@pytest.mark.parametrize("name", ["zeros.h5", "zeros.npy"])
def test_without_a_mask_zeros_tell_what_was_measured(run, images, name, tmp_path):
    kspace = kspace_of() * COLUMNS
    if name.endswith("npy"):
        np.save(tmp_path / name, kspace)
    else:
        write(tmp_path / name, kspace)
    reconstruct(run[0], str(tmp_path / name), tmp_path / "out")
    with h5py.File(tmp_path / "out" / "zeros.h5") as file:
        np.testing.assert_allclose(file["reconstruction"], np.abs(images), atol=1e-5)


@pytest.mark.slow
def test_a_mask_of_ones_own_and_fully_sampled_scans(run, images, tmp_path):
    """--acceleration keeps to the network's pattern, alike each time."""
    np.save(tmp_path / "mask.npy", COLUMNS)
    write(tmp_path / "scan.h5", kspace_of() * COLUMNS)
    full = write(tmp_path / "full.h5", kspace_of())
    out = tmp_path / "mine"
    mask = f"--mask={tmp_path / 'mask.npy'}"
    assert run_here(PROGRAM, run[0], tmp_path / "scan.h5", out, mask).returncode == 0
    with h5py.File(out / "scan.h5") as file:
        np.testing.assert_allclose(file["reconstruction"], np.abs(images), atol=1e-5)
    for name in ("once", "again"):
        done = run_here(PROGRAM, run[0], full, tmp_path / name, "--acceleration=2")
        assert done.returncode == 0, done.stderr
    once, again = (tmp_path / n / "full.h5" for n in ("once", "again"))
    with h5py.File(once) as one, h5py.File(again) as other:
        np.testing.assert_array_equal(one["reconstruction"], other["reconstruction"])
    record = json.loads((tmp_path / "once" / "reconstruct.json").read_text())
    assert record["scans"]["full.h5"]["acceleration"] == 2


@pytest.mark.slow
def test_the_shipped_network_on_the_bundled_scan(tmp_path):
    """The person of demo:test, whom it has not seen."""
    reconstruct(ROOT / "weights" / "uniform1d_5x", "demo:undersampled", tmp_path)
    view = DataConfig(size=(128, 128), crop=(192, 192), pad=True)
    whole = sources.open_source("demo:test")
    targets = [
        np.abs(
            transforms.fourier_resize(
                transforms.field_of_view(whole[n].image, view, ""), view.size
            )
        )
        for n in range(0, len(whole), 4)
    ]
    scan = finding.DEMO["demo:undersampled"]
    with h5py.File(scan) as file, h5py.File(tmp_path / scan.name) as found:
        images = np.abs(ifft(file["kspace"][()])), found["reconstruction"][()]
    zero_filled, reconstructed = (
        np.mean(
            [
                peak_signal_noise_ratio(y, x, data_range=np.ptp(y))
                for y, x in zip(targets, each, strict=True)
            ]
        )
        for each in images
    )
    assert zero_filled == pytest.approx(18.61, abs=0.02)
    assert reconstructed == pytest.approx(21.12, abs=0.05)


def test_an_oversampled_readout_is_cropped_and_columns_to_the_header(run, tmp_path):
    """As cropping the rows of the fully sampled image does, by numpy."""
    kspace = kspace_of((2, 32, 16))
    wanted = fft(ifft(kspace)[:, 8:24]) * COLUMNS
    write(tmp_path / "long.h5", kspace * COLUMNS, COLUMNS, HEADER)
    write(tmp_path / "short.h5", wanted.astype(np.complex64), COLUMNS)
    reconstruct(run[0], str(tmp_path), tmp_path / "out")
    found = {}
    for name in ("long", "short"):
        with h5py.File(tmp_path / "out" / f"{name}.h5") as file:
            found[name] = file["reconstruction"][()]
    assert found["long"].shape == (2, 16, 12)
    np.testing.assert_allclose(found["long"], found["short"][..., 2:14], atol=1e-4)


def test_unmeasured_columns_stay_zero_and_do_not_count(run, tmp_path):
    """As in fastMRI's brains: the scanner measured columns 2 to 14 of 16."""
    mask = COLUMNS.copy()
    mask[[0, 3]] = True  # the first is drawn, but was not measured
    kspace = fastmri_files.measured(np.ones((2, 16, 12)), 16, (2, 15))
    fastmri_files.write(tmp_path / "brain.h5", kspace, (16, 16), (2, 15), mask)
    record = reconstruct(
        run[0], str(tmp_path / "brain.h5"), tmp_path / "out", Options(phase=True)
    )
    with h5py.File(tmp_path / "out" / "brain.h5") as file:
        image = file["reconstruction"][()] * np.exp(1j * file["phase"][()])
    largest = np.abs(fft(image)).max(axis=(0, 1))
    assert largest[[0, 1, 15]].max() < 1e-5
    assert largest[2:15].min() > 1e-3
    found = record["scans"]["brain.h5"]["acceleration"]
    assert found == pytest.approx(13 / mask[2:15].sum(), abs=1e-3)


def test_cropping_the_readout_leaves_columns_that_are_zero(tmp_path):
    cropped = samples.crop_readout(kspace_of((32, 16)) * COLUMNS, 16)
    assert cropped.shape == (16, 16)
    assert not cropped[:, ~COLUMNS].any()


def test_nifti_has_the_voxels_of_the_header(run, tmp_path):
    write(tmp_path / "scan.h5", kspace_of((3, 32, 16)) * COLUMNS, COLUMNS, HEADER)
    scan = tmp_path / "scan.h5"
    for kind in ("nifti", "h5"):
        done = run_here(PROGRAM, run[0], scan, tmp_path / kind, f"--format={kind}")
        assert done.returncode == 0, done.stderr
    volume = nib.load(tmp_path / "nifti" / "scan.nii")
    assert volume.shape == (12, 16, 3)
    np.testing.assert_allclose(volume.header.get_zooms(), (1.5, 2, 5))
    with h5py.File(tmp_path / "h5" / "scan.h5") as file:
        wanted = file["reconstruction"][1]
    np.testing.assert_allclose(volume.get_fdata()[:, ::-1, 1].T, wanted, rtol=1e-6)


def test_a_picture_shows_all_slices(run, scan, tmp_path):
    done = run_here(PROGRAM, run[0], scan, tmp_path / "out", "--format=png")
    assert done.returncode == 0, done.stderr
    picture = matplotlib.image.imread(tmp_path / "out" / "file1.png")
    assert picture.shape[:2] == (2 * 16, 3 * 16)
    assert picture[..., 0].max() == 1


def test_it_carries_on_and_does_nothing_twice(run, scan, tmp_path):
    out = tmp_path / "out"
    first = reconstruct(run[0], str(scan), out)
    written = (out / "file1.h5").stat().st_mtime_ns
    other = write(tmp_path / "file2.h5", kspace_of() * COLUMNS, COLUMNS)
    second = reconstruct(run[0], f"{scan},{other}", out)
    assert (out / "file1.h5").stat().st_mtime_ns == written
    assert set(second["scans"]) == {"file1.h5", "file2.h5"}
    assert second["scans"]["file1.h5"] == first["scans"]["file1.h5"]
    (out / "file1.h5").unlink()  # lost: made again
    reconstruct(run[0], f"{scan},{other}", out)
    assert (out / "file1.h5").is_file()


def test_other_options_or_another_folder_are_refused(run, scan, tmp_path):
    out = tmp_path / "out"
    reconstruct(run[0], str(scan), out)
    assert "another format" in refused(PROGRAM, run[0], scan, out, "--format=png")
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "thesis.tex").touch()
    assert "is not empty" in refused(PROGRAM, run[0], scan, tmp_path / "mine")


def test_results_below_the_scans_are_no_scans(run, scan, tmp_path):
    write(tmp_path / "file1.h5", kspace_of() * COLUMNS, COLUMNS)
    for _ in range(2):
        found = reconstruct(run[0], str(tmp_path), tmp_path / "out")
        assert set(found["scans"]) == {"file1.h5"}


def test_blank_slices_of_a_volume_stay_blank(run, tmp_path):
    volume = np.abs(kspace_of((16, 16, 4))).astype(np.float32)
    whole = np.pad(volume, [(0, 0), (0, 0), (1, 2)])
    nib.save(nib.Nifti1Image(whole, np.eye(4)), tmp_path / "whole.nii")
    options = Options(undersampling=Undersampling(acceleration=2.0))
    reconstruct(run[0], str(tmp_path / "whole.nii"), tmp_path / "out", options)
    with h5py.File(tmp_path / "out" / "whole.h5") as file:
        images = file["reconstruction"][()]
    assert images.shape == (7, 16, 16)
    shown = images.max(axis=(1, 2)) > 0
    assert shown.tolist() == [False, True, True, True, True, False, False]


def test_points_are_drawn_on_the_cropped_readout(tmp_path):
    """A network for single points is tried on a scan with an oversampled readout."""
    config = dataclasses.replace(
        config_of(), mask=MaskConfig(kind="gaussian_2d", acceleration=2.0)
    )
    kspace = kspace_of((1, 32, 16))
    path = write(tmp_path / "long.h5", kspace, header=HEADER)
    volume = volumes.open_scan(path, Selection())
    found = inputs.measure(volume, 0, config, Undersampling(acceleration=2.0))
    assert found.mask.shape == SIZE
    assert found.mask.sum() == 128
    assert not (found.mask == found.mask[:1]).all()
    wanted = np.where(found.mask, fft(ifft(kspace)[0, 8:24]), 0)
    np.testing.assert_allclose(found.kspace, wanted, atol=1e-4)


def test_any_matrix_is_reconstructed(run, tmp_path):
    """The low-resolution grid keeps its share of it, here 8 of 15 columns."""
    sampled = np.arange(15) % 2 > 0
    kspace = kspace_of((1, 18, 15)) * sampled
    write(tmp_path / "odd.h5", kspace, sampled)
    options = Options(phase=True)
    reconstruct(run[0], str(tmp_path / "odd.h5"), tmp_path / "out", options)
    with h5py.File(tmp_path / "out" / "odd.h5") as file:
        image = file["reconstruction"][()] * np.exp(1j * file["phase"][()])
    assert image.shape == (1, 18, 15)
    found = fft(image)[..., sampled]
    np.testing.assert_allclose(found, kspace[..., sampled], atol=1e-4)


def test_scans_unlike_the_training_get_one_warning_each(tmp_path):
    network(tmp_path / "run", normalise="target", augment=AugmentConfig())
    config = tmp_path / "run" / "config.json"
    config.write_text(config.read_text().replace("knee.h5", "head_T1w.nii.gz"))
    few = np.arange(32) % 4 == 0
    for name in ("a.h5", "b.h5"):
        write(tmp_path / name, kspace_of((2, 16, 32)) * few, few)
    scans = f"{tmp_path / 'a.h5'},{tmp_path / 'b.h5'}"
    done = run_here(PROGRAM, tmp_path / "run", scans, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    warnings = [line for line in done.stderr.splitlines() if "warning: " in line]
    assert len(warnings) == 3
    for what in ("by their targets", "16 x 32", "4.0 times"):
        assert sum(what in line for line in warnings) == 1


def test_points_that_any_coil_measured_are_sampled():
    kspace = kspace_of((3, 16, 16)) * COLUMNS
    kspace[0, :, 1] = 0
    sample = Sample(kspace=kspace, mask=None, where="x")
    found = samples.sampling_mask(sample, np.zeros(SIZE, bool))
    np.testing.assert_array_equal(found, np.broadcast_to(COLUMNS, SIZE))


@pytest.mark.parametrize(("height", "warns"), [(32, False), (38, False), (64, True)])
def test_another_field_of_view_is_noticed(run, height, warns, tmp_path, capsys):
    """The header's pixels are 2 mm high and 1.5 mm wide: 32 x 24 mm in all."""
    write(tmp_path / "scan.h5", kspace_of((1, 32, 16)) * COLUMNS, COLUMNS, HEADER)
    fields_of_view.write(run[0], [(height, 24), (200, 200)])
    try:
        reconstruct(run[0], str(tmp_path / "scan.h5"), tmp_path / "out")
    finally:
        (run[0] / fields_of_view.NAME).unlink()
    said = f"covers 32 x 24 mm; the network was trained on {height} x 24 and 200 x 200"
    assert (said in capsys.readouterr().err) == warns


def test_a_phase_is_noticed_where_training_had_none():
    """A real image, even turned as a whole, has k-space of conjugate pairs."""
    from kst_jax.data.measurements import Measurement
    from kst_jax.reconstruct.inputs import differences

    config = Config(
        data=DataConfig(train="demo:train", size=SIZE), model=KSTConfig(lr_size=(8, 8))
    )
    rows, columns = np.meshgrid(*[np.linspace(-1, 1, 16)] * 2, indexing="ij")
    real = RNG.normal(size=SIZE)
    everything = np.ones(SIZE, bool)
    for image, noticed in (
        (real, False),
        (real * np.exp(0.7j), False),
        (real * np.exp(2j * rows * columns), True),
    ):
        kspace = fft(image).astype(np.complex64)
        measurement = Measurement(kspace, everything, kspace, ~everything, None)
        assert ("phase" in differences(measurement, config, False)) == noticed


def test_single_points_that_were_measured_are_found():
    mask = RNG.random((16, 16)) < 0.3
    sample = Sample(kspace=kspace_of((16, 16)) * mask, mask=None, where="x")
    np.testing.assert_array_equal(
        samples.sampling_mask(sample, np.zeros(mask.shape, bool)), mask
    )
