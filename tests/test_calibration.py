"""From an evaluation that calibrates to reconstructed scans with their deviations."""

import dataclasses
import json
import shutil

import h5py
import jax
import nibabel as nib
import numpy as np
import pytest

from kst_jax.config import Config, TrainConfig
from kst_jax.data_config import DataConfig
from kst_jax.eval_config import EvalConfig
from kst_jax.evaluation.uncertainty import REACH
from kst_jax.mask_config import MaskConfig
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.runs.checkpoints import write_parameters
from tests.programs import refused, run_here
from tests.references import make_kst_tiny
from tests.scans import write_h5

SIZE = (16, 16)
RNG = np.random.default_rng(0)
COLUMNS = np.arange(16) % 3 != 0
MODEL = KSTConfig(
    transformer=False,
    width=8,
    heads=2,
    mlp=8,
    hr_layers=1,
    refinement_features=4,
    refinement_layers=1,
    deviation=True,
)


def kspace_of(slices=3):
    image = RNG.uniform(1, 2, (slices, *SIZE)) + 0j
    shifted = np.fft.fft2(np.fft.ifftshift(image, axes=(1, 2)), norm="ortho")
    return np.fft.fftshift(shifted, axes=(1, 2)).astype(np.complex64)


def run_of(folder, seed, model=MODEL):
    """A run whose parameters are its seed's."""
    config = Config(
        data=DataConfig(train="trained.h5", size=SIZE),
        mask=MaskConfig(kind="uniform_1d", acceleration=1.6),
        model=model,
        train=TrainConfig(seed=seed),
        eval=EvalConfig(batch_size=2, figures=2),
    )
    network = KSpaceTransformer(config.model)
    params = make_kst_tiny.weights(network, make_kst_tiny.example())
    params = jax.tree.map(lambda x: x / (1 + seed), params)
    write_parameters(folder, params, config, {"train": ["trained"], "validation": []})
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two seeds' runs, scans of two people, and a scan without its middle columns."""
    path = tmp_path_factory.mktemp("uncertainty")
    for seed in (0, 1):
        run_of(path / f"seed{seed}", seed)
    for name in ("calibrating", "tested"):
        write_h5(path / f"{name}.h5", kspace_of())
    with h5py.File(path / "undersampled.h5", "w") as file:
        file["kspace"] = kspace_of() * COLUMNS
        file["mask"] = COLUMNS
    return path


def evaluated(folder, name, out, *options):
    return [
        "kst-eval",
        f"--config=saved:{folder / 'seed0'}",
        f"--workdir={folder / 'seed0'}",
        f"--config.data.test={folder / name}.h5",
        f"--config.eval.out={folder / out}",
        f"--config.eval.members={folder / 'seed1'}",
        *options,
    ]


@pytest.fixture(scope="module")
def calibration(folder):
    done = run_here(*evaluated(folder, "calibrating", "calibration"))
    assert done.returncode == 0, done.stderr
    assert "calibrated scale" in done.stdout
    return folder / "calibration"


@pytest.fixture(scope="module")
def tested(folder, calibration):
    option = f"--config.eval.calibration={calibration}"
    done = run_here(*evaluated(folder, "tested", "tested", option))
    assert done.returncode == 0, done.stderr
    assert "tested: hold" in done.stdout
    return folder / "tested"


def summary_of(results):
    return json.loads((results / "metrics.json").read_text())["uncertainty"]


def test_an_evaluation_calibrates_itself(calibration):
    """The scale that it finds holds nine tenths of its own errors."""
    found = summary_of(calibration)
    assert (found["scale"], found["steps"]) == (1.0, [0, 0])
    with h5py.File(calibration / "reconstructions" / "calibrating.h5") as file:
        image, deviation = file["reconstruction"][()], file["deviation"][()]
    with h5py.File(calibration.parent / "calibrating.h5") as file:
        kspace = np.fft.ifftshift(file["kspace"][()], axes=(1, 2))
    target = np.abs(np.fft.fftshift(np.fft.ifft2(kspace, norm="ortho"), axes=(1, 2)))
    assert target.min() > 0.05 * target.max()  # so that every pixel counts
    error = np.abs(image - target)
    held = error <= found["calibrated_scale"] * REACH * deviation
    assert 0.9 <= held.mean() < 0.91
    assert found["coverage"] == np.mean(error <= REACH * deviation)


def test_an_evaluation_of_others_uses_that_scale(calibration, tested):
    found, scale = summary_of(tested), summary_of(calibration)["calibrated_scale"]
    assert found["scale"] == scale
    assert list(found["by_person"]) == ["tested"]
    for name in ("deviations.png", "calibration.png"):
        assert (tested / "figures" / name).exists()
    report = json.loads((tested / "metrics.json").read_text())
    (volume,) = report["per_volume"].values()
    assert volume["uncertainty"]["coverage"] == found["coverage"]


def reconstructed(folder, out, *options, run="seed0", scans="undersampled.h5"):
    return ["kst-reconstruct", folder / run, folder / scans, folder / out, *options]


@pytest.fixture(scope="module")
def images(folder, calibration):
    options = f"--uncertainty={calibration}", "--batch_size=2", "--complex"
    done = run_here(*reconstructed(folder, "images", *options))
    assert done.returncode == 0, done.stderr
    with h5py.File(folder / "images" / "undersampled.h5") as file:
        return {name: file[name][()] for name in file}


def test_reconstructions_have_deviations_and_members(folder, calibration, images):
    """A network alone has the images of the first member."""
    members = images["members"] * np.exp(1j * images["members_phase"])
    assert members.shape == (3, 2, *SIZE)
    mean = images["reconstruction"] * np.exp(1j * images["phase"])
    np.testing.assert_allclose(members.mean(1), mean, atol=1e-4)
    done = run_here(*reconstructed(folder, "alone", "--complex"))
    assert done.returncode == 0, done.stderr
    with h5py.File(folder / "alone" / "undersampled.h5") as file:
        assert "deviation" not in file
        alone = file["reconstruction"][()] * np.exp(1j * file["phase"][()])
    np.testing.assert_allclose(members[:, 0], alone, atol=1e-4)
    # Beyond the spread of the members there is what they predict.
    scale = summary_of(calibration)["calibrated_scale"]
    spread = scale * np.std(images["members"], axis=1, ddof=1)
    assert (images["deviation"] > spread).all()
    assert (folder / "images" / "undersampled_deviation.png").stat().st_size > 1000
    record = json.loads((folder / "images" / "reconstruct.json").read_text())
    assert record["uncertainty"]["scale"] == scale


def test_members_agree_with_the_samples(folder, images):
    members = images["members"] * np.exp(1j * images["members_phase"])
    x = np.fft.fft2(np.fft.ifftshift(members, axes=(2, 3)), norm="ortho")
    spectrum = np.fft.fftshift(x, axes=(2, 3))
    with h5py.File(folder / "undersampled.h5") as file:
        measured = file["kspace"][()]
    for number in range(2):
        np.testing.assert_allclose(
            spectrum[:, number][..., COLUMNS], measured[..., COLUMNS], atol=1e-3
        )


def test_a_nifti_file_has_deviations_as_a_further_volume(folder, calibration, images):
    options = f"--uncertainty={calibration}", "--format=nifti"
    done = run_here(*reconstructed(folder, "nifti", *options))
    assert done.returncode == 0, done.stderr
    volume = nib.load(folder / "nifti" / "undersampled.nii").get_fdata()
    for place, name in enumerate(("reconstruction", "deviation")):
        wanted = np.moveaxis(images[name], (0, 1, 2), (2, 1, 0))[:, ::-1]
        np.testing.assert_allclose(volume[..., place], wanted, rtol=1e-3, err_msg=name)


def test_people_who_calibrate_are_not_tested(folder, calibration):
    option = f"--config.eval.calibration={calibration}"
    told = refused(*evaluated(folder, "calibrating", "again", option))
    assert "calibrating is among the test scans" in told
    assert not (folder / "again" / "metrics.json").exists()


def test_a_calibration_of_other_networks_is_refused(folder, calibration):
    told = refused(
        *reconstructed(folder, "no", f"--uncertainty={calibration}", run="seed1")
    )
    assert "has the seed of" in told
    run_of(folder / "seed2", 2)
    told = refused(
        *reconstructed(folder, "no", f"--uncertainty={calibration}", run="seed2")
    )
    assert "calibrates" in told
    assert "seed2" in told
    option = f"--config.eval.calibration={calibration}"
    alone = evaluated(folder, "tested", "no", option, "--config.eval.members=")
    assert "calibrates" in refused(*alone)


def test_a_calibration_of_other_steps_is_refused(folder, calibration, tmp_path):
    shutil.copytree(calibration, tmp_path / "later")
    path = tmp_path / "later" / "metrics.json"
    found = json.loads(path.read_text())
    found["uncertainty"]["steps"][1] = 7
    found["test"]["run"] = str(folder / "seed0")
    found["test"]["members"] = [str(folder / "seed1")]
    path.write_text(json.dumps(found))
    told = refused(*reconstructed(folder, "no", f"--uncertainty={path.parent}"))
    assert "steps 0, 7" in told
    assert "0, 0" in told


def test_what_is_no_calibration_is_refused(folder, tmp_path):
    told = refused(*reconstructed(folder, "no", f"--uncertainty={tmp_path}"))
    assert "metrics.json: not found" in told
    (tmp_path / "metrics.json").write_text(json.dumps({"test": {"run": "x"}}))
    told = refused(*reconstructed(folder, "no", f"--uncertainty={tmp_path}"))
    assert "tells nothing of deviations" in told
    told = refused(
        "kst-reconstruct", "sense", folder, folder / "no", f"--uncertainty={tmp_path}"
    )
    assert "sense does not know" in told
    assert not (folder / "no").exists()


def test_members_that_cannot_form_an_ensemble_are_refused(folder, tmp_path):
    same = run_of(tmp_path / "same", 0)
    told = refused(*evaluated(folder, "tested", "no", f"--config.eval.members={same}"))
    assert "has the seed of" in told
    other = run_of(tmp_path / "other", 5, dataclasses.replace(MODEL, hr_layers=2))
    told = refused(*evaluated(folder, "tested", "no", f"--config.eval.members={other}"))
    assert "hr_layers" in told
