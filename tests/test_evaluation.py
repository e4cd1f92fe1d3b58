"""What eval.py writes of a run that train.py made, and what it does not write over."""

import dataclasses
import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kst_jax import reports
from kst_jax.config_dict import from_dict
from kst_jax.data import pipeline
from kst_jax.errors import InputError
from kst_jax.evaluation import evaluate
from tests.programs import TINY, refused, run_apart, run_here

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "tiny"
    done = run_apart("train.py", *TINY, f"--workdir={path}")
    assert done.returncode == 0, done.stderr
    assert "images/s" in done.stderr
    done = run_apart("eval.py", *TINY, f"--workdir={path}")
    assert done.returncode == 0, done.stderr
    assert "zero-filled" in done.stdout
    return path


@pytest.fixture(scope="module")
def config(workdir):
    return from_dict(json.loads((workdir / "config.json").read_text()))


@pytest.fixture(scope="module")
def report(workdir):
    return json.loads((workdir / "eval" / "metrics.json").read_text())


def test_a_run_leaves_its_files(workdir):
    for name in (
        "config.json",
        "train_subjects.json",
        "train.jsonl",
        "checkpoints/4",
        "eval/metrics.json",
        "eval/reconstructions/sub-0042_T1w.h5",
        "eval/figures/reconstructions.png",
        "eval/figures/stages.png",
    ):
        assert (workdir / name).exists(), name
    assert not list(workdir.rglob("*.tmp"))
    assert not list(workdir.rglob("*.partial*"))


def test_metrics_are_scikit_images_of_the_written_files(workdir, config, report):
    source = pipeline.open_test_source(config)
    sampler = pipeline.open_sampler(config)
    targets = []
    for test in pipeline.test_batches(source, config, sampler):
        image = test.batch.image * test.std[:, None, None, None]
        image = image + test.mean[:, None, None, None]
        targets.append(np.hypot(image[..., 0], image[..., 1])[test.number >= 0])
    targets = np.concatenate(targets)
    with h5py.File(workdir / "eval" / "reconstructions" / "sub-0042_T1w.h5") as file:
        images = file["reconstruction"][:]
        assert file["slice"][:].tolist() == [
            source.describe(n).index for n in range(len(source))
        ]
        assert "simulated" in file.attrs["kspace"]
    assert images.shape == targets.shape
    assert images.dtype == np.float32
    psnr, ssim = [], []
    for image, target in zip(images, targets, strict=True):
        spans = {"data_range": np.ptp(target)}
        psnr.append(peak_signal_noise_ratio(target, image, **spans))
        ssim.append(structural_similarity(target, image, **spans))
    mean = report["slices"]["input"]["reconstruction"]
    assert mean["psnr"]["mean"] == pytest.approx(np.mean(psnr), abs=1e-3)
    assert mean["ssim"]["mean"] == pytest.approx(np.mean(ssim), abs=1e-4)
    volume = report["per_volume"]["sub-0042_T1w"]["reconstruction"]
    wanted = np.sum((targets - images) ** 2) / np.sum(targets**2)
    assert volume["nmse"] == pytest.approx(wanted, rel=1e-3)
    wanted = peak_signal_noise_ratio(targets, images, data_range=targets.max())
    assert volume["psnr"] == pytest.approx(wanted, abs=1e-3)


def test_saved_images_are_in_the_inputs_units(workdir):
    with h5py.File(workdir / "eval" / "reconstructions" / "sub-0042_T1w.h5") as file:
        images = file["reconstruction"][:]
    assert 30 < images.mean() < 150  # the scans are 8 bit


def test_any_batch_size_gives_the_same_mean(workdir, report):
    out = workdir / "one_by_one"
    done = run_here(
        "eval.py",
        *TINY,
        f"--workdir={workdir}",
        "--config.eval.batch_size=3",
        f"--config.eval.out={out}",
    )
    assert done.returncode == 0, done.stderr
    other = json.loads((out / "metrics.json").read_text())
    assert other["slices"]["count"] == report["slices"]["count"]
    for scale in ("normalised", "input"):
        for method in ("zero_filled", "reconstruction"):
            for score in ("psnr", "ssim"):
                got, wanted = (
                    r["slices"][scale][method][score]["mean"] for r in (other, report)
                )
                assert got == pytest.approx(wanted, abs=1e-4)
    per_slice = [row["input"]["reconstruction"]["psnr"] for row in report["per_slice"]]
    assert np.mean(per_slice) == pytest.approx(
        report["slices"]["input"]["reconstruction"]["psnr"]["mean"], abs=1e-5
    )


def test_the_saved_config_evaluates_measured_scans(workdir, shared, tmp_path):
    done = run_here(
        "eval.py",
        f"--config=configs/saved.py:{workdir}",
        f"--workdir={workdir}",
        f"--config.data.test={shared / 'data' / 'brain_vfa_singlecoil.h5'}",
        "--config.data.slices=(0.0,1.0)",
        f"--config.eval.out={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["kspace"] == "measured"
    assert report["slices"]["count"] == 3


def test_a_converted_checkpoint_is_evaluated(shared, tmp_path):
    checkpoint = shared / "goldens" / "authors_small.pth"
    size = ("--lr_size", "16", "16")
    done = run_here("kst_jax.convert", checkpoint, tmp_path / "out", *size)
    assert done.returncode == 0, done.stderr
    done = run_here(
        "eval.py",
        f"--config=configs/saved.py:{tmp_path / 'out'}",
        f"--workdir={tmp_path / 'out'}",
        f"--config.data.test=demo:test,{shared / 'data' / 'brain_vfa_singlecoil.h5'}",
        "--config.data.slices=(0.3,0.7)",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "eval" / "metrics.json").read_text())
    assert set(report["per_volume"]) == {"sub-0042_T1w", "brain_vfa_singlecoil"}
    assert report["volumes"]["count"] == 2
    for name, volume in report["per_volume"].items():
        path = tmp_path / "out" / "eval" / "reconstructions" / f"{name}.h5"
        with h5py.File(path) as file:
            assert len(file["reconstruction"]) == volume["slices"]


def test_eval_without_a_checkpoint_or_with_another_model(workdir, tmp_path):
    assert "no checkpoint here" in refused("eval.py", *TINY, f"--workdir={tmp_path}")
    error = refused("eval.py", *TINY, f"--workdir={workdir}", "--config.model.width=16")
    assert "model.width is 8 there and 16 here" in error


def test_results_of_other_scans_are_not_overwritten(workdir):
    error = refused(
        "eval.py", *TINY, f"--workdir={workdir}", "--config.mask.acceleration=3.0"
    )
    assert "eval.out" in error


def test_results_move_with_their_run_and_its_scans(workdir, config, tmp_path):
    moved = Path(shutil.copytree(workdir, tmp_path / "moved"))
    elsewhere = with_data(config, train="/moved/too")
    test = reports.identify(moved / "eval", elsewhere, moved)
    reports.require_same_test(moved / "eval", test)
    of_a_copy = reports.identify(workdir / "eval", config, moved)
    with pytest.raises(InputError, match="another run"):
        reports.require_same_test(workdir / "eval", of_a_copy)


def test_whom_a_test_is_set_aside_from_decides_whose_results_they_are(config):
    found = [
        reports.identify(Path("out"), with_data(config, train=train, test=""), "run")
        for train in ("/scans", "/others")
    ]
    assert found[0] != found[1]


def with_data(config, **changes):
    data = dataclasses.replace(config.data, **changes)
    return dataclasses.replace(config, data=data)


def test_reconstructions_of_scans_that_are_gone_go(config, workdir, tmp_path):
    out = tmp_path / "out"
    changed = dataclasses.replace(config.eval, out=str(out), figures=0)
    config = dataclasses.replace(config, eval=changed)
    evaluate(config, workdir)
    before = out / "reconstructions" / "gone.h5"
    before.write_bytes(b"of a scan that was here")
    (out / "notes.txt").write_text("the user's")
    evaluate(config, workdir)
    assert not before.exists()
    assert [path.name for path in before.parent.iterdir()] == ["sub-0042_T1w.h5"]
    assert (out / "notes.txt").exists()


def test_a_slice_of_which_all_is_sampled_has_no_attention_to_show(workdir, tmp_path):
    """fastMRI's random masks are full now and then, at a low acceleration often."""
    done = run_here(
        "eval.py",
        *TINY,
        f"--workdir={workdir}",
        "--config.mask.kind=fastmri_random",
        "--config.mask.acceleration=1.01",
        f"--config.eval.out={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    with np.load(tmp_path / "figures" / "slices.npz") as slices:
        assert slices["mask"].all()
    assert (tmp_path / "figures" / "stages.png").exists()
    assert not (tmp_path / "figures" / "attention.png").exists()


def test_an_evaluation_that_is_interrupted_leaves_nothing(
    config, workdir, tmp_path, monkeypatch
):
    add = reports.Report.add

    def interrupted(self, number, found):
        add(self, number, found)
        if number == 1:
            self._close_volume()  # so that there is a reconstruction
            raise KeyboardInterrupt

    monkeypatch.setattr(reports.Report, "add", interrupted)
    out = tmp_path / "out"
    changed = dataclasses.replace(config.eval, out=str(out))
    with pytest.raises(KeyboardInterrupt):
        evaluate(dataclasses.replace(config, eval=changed), workdir)
    assert list(out.iterdir()) == []


def test_a_file_in_the_way_of_its_folder(config, workdir, tmp_path):
    file = tmp_path / "file"
    file.write_text("something else")
    out = dataclasses.replace(config.eval, out=str(file / "below"))
    with pytest.raises(InputError, match=f"{file}.*: cannot be a folder"):
        evaluate(dataclasses.replace(config, eval=out), workdir)
    assert file.read_text() == "something else"
