"""From an evaluation that calibrates to reconstructed scans with their deviations."""

import dataclasses
import json
import re
import shutil

import h5py
import jax
import matplotlib.image
import nibabel as nib
import numpy as np
import pytest

from kst_jax import tokens
from kst_jax.config import Config, TrainConfig
from kst_jax.data_config import DataConfig
from kst_jax.errors import InputError
from kst_jax.eval_config import EvalConfig
from kst_jax.evaluation.uncertainty import HALF_WIDTH
from kst_jax.mask_config import MaskConfig
from kst_jax.models import ensemble
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.runs import ensembles
from kst_jax.runs.calibration import read
from kst_jax.runs.checkpoints import read_parameters, write_parameters
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


def run_of(folder, seed, **changes):
    """A run whose parameters are its seed's."""
    sections = {
        "data": DataConfig(train="trained.h5", size=SIZE),
        "mask": MaskConfig(kind="uniform_1d", acceleration=1.6),
        "model": MODEL,
        "train": TrainConfig(seed=seed),
        "eval": EvalConfig(batch_size=2, figures=2),
    }
    config = Config(**(sections | changes))
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
        file["kspace"] = 1000 * kspace_of() * COLUMNS
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
    assert "one person, which promises nothing about others" in done.stdout
    return folder / "calibration"


@pytest.fixture(scope="module")
def tested(folder, calibration):
    option = f"--config.eval.calibration={calibration}"
    done = run_here(*evaluated(folder, "tested", "tested", option))
    assert done.returncode == 0, done.stderr
    coverage = summary_of(folder / "tested")["coverage"]
    assert re.search(rf"tested +1 +{coverage:.1%}", done.stdout)
    return folder / "tested"


def summary_of(results):
    return json.loads((results / "metrics.json").read_text())["uncertainty"]


def test_an_evaluation_calibrates_itself(calibration):
    """The scale that it finds holds nine tenths of its own errors."""
    found = summary_of(calibration)
    assert found["scale"] == 1.0
    report = json.loads((calibration / "metrics.json").read_text())
    assert [one["run"] for one in report["networks"]] == ["../seed0", "../seed1"]
    with h5py.File(calibration / "reconstructions" / "calibrating.h5") as file:
        image, deviation = file["reconstruction"][()], file["deviation"][()]
    with h5py.File(calibration.parent / "calibrating.h5") as file:
        kspace = np.fft.ifftshift(file["kspace"][()], axes=(1, 2))
    target = np.abs(np.fft.fftshift(np.fft.ifft2(kspace, norm="ortho"), axes=(1, 2)))
    assert target.min() > 0.05 * target.max()  # so that every pixel counts
    error = np.abs(image - target)
    held = error <= found["calibrated_scale"] * HALF_WIDTH * deviation
    assert 0.9 <= held.mean() < 0.91
    assert found["coverage"] == np.mean(error <= HALF_WIDTH * deviation)


def test_an_evaluation_of_others_uses_that_scale(folder, calibration, tested):
    found, scale = summary_of(tested), summary_of(calibration)["calibrated_scale"]
    assert found["scale"] == scale
    done = run_here(*evaluated(folder, "tested", "raw", "--config.eval.figures=0"))
    assert done.returncode == 0, done.stderr
    deviations = []
    for name in ("raw", "tested"):
        with h5py.File(folder / name / "reconstructions" / "tested.h5") as file:
            deviations.append(file["deviation"][()])
    np.testing.assert_allclose(deviations[1], scale * deviations[0], rtol=1e-5)
    # What these scans would need does not depend on it, but for the width of a bin.
    needed = summary_of(folder / "raw")["calibrated_scale"]
    assert found["calibrated_scale"] == pytest.approx(needed, rel=3e-3)
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
    np.testing.assert_allclose(members.mean(1), mean, atol=0.1)
    done = run_here(*reconstructed(folder, "alone", "--complex"))
    assert done.returncode == 0, done.stderr
    with h5py.File(folder / "alone" / "undersampled.h5") as file:
        assert "deviation" not in file
        alone = file["reconstruction"][()] * np.exp(1j * file["phase"][()])
    np.testing.assert_allclose(members[:, 0], alone, atol=0.1)
    picture = matplotlib.image.imread(folder / "images" / "undersampled_deviation.png")
    assert np.ptp(picture) == 1
    record = json.loads((folder / "images" / "reconstruct.json").read_text())
    assert record["uncertainty"]["people"] == ["calibrating"]
    again = run_here(*reconstructed(folder, "alone"))
    assert again.returncode == 1  # holds phases
    told = refused(*reconstructed(folder, "images", "--complex"))
    assert "another uncertainty" in told


def test_deviations_are_in_the_units_of_the_scan(folder, calibration, images):
    """By hand: divided by the root mean square, predicted, scaled, multiplied."""
    members = [read_parameters(folder / f"seed{n}")[0] for n in (0, 1)]
    with h5py.File(folder / "undersampled.h5") as file:
        measured = file["kspace"][0]
    image = np.fft.ifft2(np.fft.ifftshift(measured), norm="ortho")
    unit = np.sqrt(np.mean(np.abs(image) ** 2) / 2)
    channels = np.stack([measured.real, measured.imag], -1) / unit
    mask = np.broadcast_to(COLUMNS, SIZE)
    batch = tokens.batch_of([tokens.tokenise(channels.astype(np.float32), mask)])
    together = jax.jit(ensemble.reconstruct, static_argnums=0)
    found = together(KSpaceTransformer(MODEL), members, batch)
    scale = summary_of(calibration)["calibrated_scale"]
    wanted = scale * unit * found.deviation[0]
    np.testing.assert_allclose(images["deviation"][0], wanted, rtol=1e-3)


def test_members_agree_with_the_samples(folder, images):
    members = images["members"] * np.exp(1j * images["members_phase"])
    x = np.fft.fft2(np.fft.ifftshift(members, axes=(2, 3)), norm="ortho")
    spectrum = np.fft.fftshift(x, axes=(2, 3))
    with h5py.File(folder / "undersampled.h5") as file:
        measured = file["kspace"][()]
    for number in range(2):
        np.testing.assert_allclose(
            spectrum[:, number][..., COLUMNS], measured[..., COLUMNS], rtol=1e-4, atol=1
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


def test_any_member_of_an_ensemble_stands_for_it(folder, calibration, images):
    options = f"--uncertainty={calibration}", "--batch_size=3"
    done = run_here(*reconstructed(folder, "swapped", *options, run="seed1"))
    assert done.returncode == 0, done.stderr
    assert "calibrated on one person" in done.stderr
    with h5py.File(folder / "swapped" / "undersampled.h5") as file:
        for name in ("reconstruction", "deviation"):
            np.testing.assert_allclose(file[name][()], images[name], rtol=1e-3)


def test_a_calibration_of_other_networks_is_refused(folder, calibration):
    run_of(folder / "seed2", 2)
    told = refused(
        *reconstructed(folder, "no", f"--uncertainty={calibration}", run="seed2")
    )
    assert re.search(r"calibrates .*seed0, .*seed1, but not .*seed2 at step 0", told)
    option = f"--config.eval.calibration={calibration}"
    alone = evaluated(folder, "tested", "no", option, "--config.eval.members=")
    assert re.search(r"calibrates .*seed1, not .*seed0 at step 0", refused(*alone))


def test_a_calibration_of_parameters_that_changed_is_refused(folder, calibration):
    shutil.copytree(folder / "seed1", folder / "kept")
    run_of(folder / "other", 3)
    shutil.rmtree(folder / "seed1")
    shutil.copytree(folder / "other", folder / "seed1")
    try:
        told = refused(*reconstructed(folder, "no", f"--uncertainty={calibration}"))
        assert "calibrate again" in told
    finally:
        shutil.rmtree(folder / "seed1")
        shutil.move(folder / "kept", folder / "seed1")


def test_a_calibration_of_another_undersampling_is_refused(folder, calibration):
    option = f"--config.eval.calibration={calibration}"
    other = "--config.mask.acceleration=2.0"
    told = refused(*evaluated(folder, "tested", "no", option, other))
    assert "mask.acceleration is 1.6 there and 2.0 here" in told


def test_what_is_no_calibration_is_refused(folder, tmp_path):
    told = refused(*reconstructed(folder, "no", f"--uncertainty={tmp_path}"))
    assert "metrics.json: not found" in told
    path = tmp_path / "metrics.json"
    path.write_text(json.dumps({"test": {"run": "x"}}))
    told = refused(*reconstructed(folder, "no", f"--uncertainty={path}"))
    assert "not found" in told
    told = refused(*reconstructed(folder, "no", f"--uncertainty={tmp_path}"))
    assert "has no deviations" in told
    told = refused(
        "kst-reconstruct", "sense", folder, folder / "no", f"--uncertainty={tmp_path}"
    )
    assert "sense predicts no deviations" in told
    pictures = "--format=png", f"--uncertainty={tmp_path}"
    assert "--format=h5" in refused(*reconstructed(folder, "no", *pictures))
    assert not (folder / "no").exists()


def damaged(report, key, value):
    if key == "networks":
        return report | {"networks": value}
    return report | {"uncertainty": report["uncertainty"] | {key: value}}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        *(("calibrated_scale", value) for value in (None, "2", True, -1.0, 0.0)),
        ("calibrated_scale", float("nan")),
        ("calibrated_scale", 10**400),
        ("by_person", 3),
        *(("networks", value) for value in (None, "ab", [{"run": "x"}])),
    ],
)
def test_a_damaged_calibration_is_refused(calibration, tmp_path, key, value):
    report = json.loads((calibration / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps(damaged(report, key, value)))
    with pytest.raises(InputError, match="cannot be read"):
        read(tmp_path)


def test_calibrations_move_with_their_runs(folder, calibration, tmp_path):
    assert set(read(calibration).runs.values()) == {folder / "seed0", folder / "seed1"}
    link = tmp_path / "link"
    link.symlink_to(calibration)
    assert read(link).runs == read(calibration).runs


@pytest.mark.parametrize(
    ("people", "words"),
    [(("a",), "one person, which promises nothing"), (("a", "b"), "on 2 people")],
)
def test_a_calibration_says_what_it_is_worth(calibration, people, words):
    found = dataclasses.replace(read(calibration), people=people)
    assert words in found.worth


CHANGES = {
    "hr_layers": {"model": dataclasses.replace(MODEL, hr_layers=2)},
    "acceleration": {"mask": MaskConfig(kind="uniform_1d", acceleration=2.0)},
    "ssim": {"train": TrainConfig(error="ssim", domain="image", seed=5)},
}


@pytest.mark.parametrize("name", CHANGES)
def test_members_that_cannot_form_an_ensemble_are_refused(folder, tmp_path, name):
    other = run_of(tmp_path / "other", 5, **CHANGES[name])
    told = refused(*evaluated(folder, "tested", "no", f"--config.eval.members={other}"))
    assert f"{other}: cannot be a member" in told
    assert name in told


def test_images_whose_phases_need_not_agree_are_not_averaged(tmp_path):
    runs = [
        run_of(
            tmp_path / str(seed),
            seed,
            train=TrainConfig(error="ssim", domain="image", seed=seed),
        )
        for seed in (0, 1)
    ]
    first = ensembles.read(runs[0], "latest")
    with pytest.raises(InputError, match="cannot be averaged"):
        ensembles.with_members(first, runs[1:], "latest")


def test_a_network_beside_itself_is_refused(folder, tmp_path):
    same = run_of(tmp_path / "same", 0)
    told = refused(*evaluated(folder, "tested", "no", f"--config.eval.members={same}"))
    assert "has the seed of" in told
