"""train.py and eval.py as a user types them."""

import json
import shutil
import subprocess
import sys

import h5py
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kst_jax.config import from_dict
from kst_jax.data import pipeline
from tests.conftest import ROOT

TINY = [
    "--config=configs/demo.py",
    "--config.data.size=(16,16)",
    "--config.data.slices=(0.4,0.55)",
    "--config.model.width=8",
    "--config.model.heads=2",
    "--config.model.mlp=8",
    "--config.model.hr_layers=1",
    "--config.model.lr_layers=1",
    "--config.model.encoder_layers=1",
    "--config.model.lr_size=(8,8)",
    "--config.model.refinement_features=4",
    "--config.train.steps=4",
    "--config.train.warmup_steps=0",
    "--config.train.checkpoint_every=2",
    "--config.train.image_every=0",
]


def run(program, *args):
    return subprocess.run(
        [sys.executable, program, *map(str, args)],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "tiny"
    done = run("train.py", *TINY, f"--workdir={path}")
    assert done.returncode == 0, done.stderr
    assert "images/s" in done.stderr
    done = run("eval.py", *TINY, f"--workdir={path}")
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
    assert not list(workdir.rglob("*.partial"))


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
    done = run(
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
    done = run(
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


def test_running_again_carries_on(workdir, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(workdir, copy)
    shutil.rmtree(copy / "checkpoints" / "4")
    before = (copy / "train.jsonl").read_text()
    done = run("train.py", *TINY, f"--workdir={copy}")
    assert done.returncode == 0, done.stderr
    assert (copy / "checkpoints" / "4").is_dir()
    assert (copy / "train.jsonl").read_text() == before


def refused(program, *args):
    done = run(program, *args)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert "error: " in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--config.train.stepz=3"], "valid keys: accumulate, batch_size"),
        (["--config.data.train=/nowhere"], "/nowhere: no such file"),
        (["--config.mask.acceleration=0.5"], "at least 1"),
        (["--config.data.pad=False"], "smaller than the crop"),
        (["--config.data.test=demo:train"], "sub-0017"),
        (["--config.model.heads=0"], "model.heads=0"),
        (["surplus"], "'surplus' is no flag"),
        (["--num_processes=2", "--process_id=0"], "belong together"),
        (["--coordinator=here"], "HOST:PORT"),
    ],
)
def test_mistakes_get_one_message(change, message, tmp_path):
    error = refused("train.py", *TINY, f"--workdir={tmp_path / 'x'}", *change)
    assert message in error
    assert not (tmp_path / "x" / "checkpoints" / "4").exists()


def test_missing_flags_and_configs(tmp_path):
    assert "--workdir is missing" in refused("train.py", "--config=configs/demo.py")
    workdir = f"--workdir={tmp_path}"
    assert "--config is missing" in refused("train.py", workdir)
    assert "no_such.py" in refused("train.py", workdir, "--config=configs/no_such.py")
    assert "oasis" in refused("train.py", workdir, "--config=configs/paper.py:x")
    assert "oasis" in refused("train.py", workdir, "--config=configs/paper.py")
    refused("train.py", "--config=configs/demo.py", "--workdir=/proc/none")


def test_eval_without_a_checkpoint_or_with_another_model(workdir, tmp_path):
    assert "no checkpoint here" in refused("eval.py", *TINY, f"--workdir={tmp_path}")
    error = refused("eval.py", *TINY, f"--workdir={workdir}", "--config.model.width=16")
    assert "model.width is 8 there and 16 here" in error


def test_results_of_other_scans_are_not_overwritten(workdir):
    error = refused(
        "eval.py", *TINY, f"--workdir={workdir}", "--config.mask.acceleration=3.0"
    )
    assert "eval.out" in error


def test_people_of_the_training_are_not_tested(workdir, tmp_path):
    error = refused(
        "eval.py",
        *TINY,
        f"--workdir={workdir}",
        "--config.data.test=demo:train",
        f"--config.eval.out={tmp_path}",
    )
    assert "sub-0017" in error
    assert "was trained" in error


def test_a_converted_checkpoint_is_evaluated(shared, tmp_path):
    done = subprocess.run(
        [
            *(sys.executable, "-m", "kst_jax.convert"),
            *(shared / "goldens" / "authors_small.pth", tmp_path / "out"),
            *("--lr_size", "16", "16"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    done = run(
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


def test_debug_shows_a_traceback(tmp_path):
    done = run("eval.py", *TINY, f"--workdir={tmp_path}", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


@pytest.mark.parametrize("program", ["train.py", "eval.py"])
def test_help_explains(program):
    text = run(program, "--help").stdout
    assert f"python {program} --config=configs/demo.py" in text
    for flag in ("--config", "--workdir", "--[no]debug", "--[no]distributed"):
        assert f"  {flag}: " in text, text
