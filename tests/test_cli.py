"""train.py, eval.py and the other programs as a user types them."""

import dataclasses
import json
import os
import re
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import h5py
import jax
import numpy as np
import orbax.checkpoint as ocp
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kst_jax import cli, export, files, reports
from kst_jax.checkpoints import write_parameters
from kst_jax.config_dict import from_dict, require_key
from kst_jax.data import pipeline
from kst_jax.data.prepare import prepare
from kst_jax.errors import InputError
from kst_jax.evaluation import evaluate
from kst_jax.training import train
from tests.conftest import ROOT
from tests.programs import run_here

pytestmark = pytest.mark.usefixtures("quick_compilation")

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


def refused(program, *args):
    done = run_here(program, *args)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "error: " in done.stderr
    return done.stderr


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (["--config.train.stepz=3"], "valid keys: accumulate, batch_size"),
        (["--config.data.train=/no-where"], "/no-where: no such file"),
        (["--config.mask.acceleration=0.5"], "at least 1"),
        (["--config.data.pad=False"], "smaller than the crop"),
        (["--config.data.test=demo:train"], "sub-0017"),
        (["--config.model.heads=0"], "model.heads=0"),
        (["--config.model.widht=8"], 'Did you mean "width"'),
        (["--config.mask.kind=spiral"], "one of gaussian_2d, uniform_1d"),
        (["surplus"], "'surplus' is no flag"),
        (["--num-processes=2", "--process_id=0"], "belong together"),
        (["--config.train.batch-size=0"], "train.batch_size=0"),
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
    assert "is it configs/demo.py" in refused(
        "train.py", workdir, "--config=configs/dmeo.py"
    )
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


def test_debug_shows_a_traceback(tmp_path):
    done = run("eval.py", *TINY, f"--workdir={tmp_path}", "--debug")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


PROGRAMS = sorted(
    str(path.relative_to(ROOT))
    for path in (*ROOT.glob("*.py"), *ROOT.glob("kst_jax/**/*.py"))
    if '__name__ == "__main__"' in path.read_text()
)
# An export's reconstruct.py is a copy of loader.py.
COMMANDS = {"kst_jax/loader.py": "reconstruct.py"} | {
    path: path if "/" not in path else f"-m {path[:-3].replace('/', '.')}"
    for path in PROGRAMS
    if path != "kst_jax/loader.py"
}


@pytest.mark.parametrize("path", PROGRAMS)
def test_help_explains(path):
    """With an example, no flag or setting that does not exist, and none of absl's."""
    start = [path] if path == "kst_jax/loader.py" else COMMANDS[path].split()
    done = run(*start, "--help")
    assert done.returncode == 0
    assert done.stderr == ""
    assert f"    python {COMMANDS[path]} " in done.stdout
    listed = set(re.findall(r"^  (?:-h, )?--(\w+)", done.stdout, re.MULTILINE))
    named = set(re.findall(r"--([\w.]*\w)", done.stdout)) - {"helpfull"}
    settings = {name for name in named if name.startswith("config.")}
    for setting in settings - {"config.section.key"}:
        require_key(setting.removeprefix("config."))
    assert named - settings <= listed | {"config", "workdir"}
    assert not listed & {"verbosity", "logtostderr", "jax_platforms"}


def test_helpfull_has_the_flags_of_absl_too():
    done = run("train.py", "--helpfull")
    assert done.returncode == 0
    assert "--verbosity" in done.stdout


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_text("something else")
    yield path
    assert path.read_text() == "something else"


def test_a_file_in_the_way_of_a_folder(config, workdir, file):
    params = {"weight": np.zeros(3)}
    evaluation = dataclasses.replace(config.eval, out=str(file / "below"))
    for write in (
        lambda: train(config, file),
        lambda: evaluate(dataclasses.replace(config, eval=evaluation), workdir),
        lambda: write_parameters(file, params, config),
        lambda: export.write(None, file / "below"),
        lambda: prepare("demo:train", file),
    ):
        with pytest.raises(InputError, match=f"{file}.*: cannot be a folder"):
            write()


def test_a_folder_that_cannot_be_written_to(tmp_path):
    folder = tmp_path / "locked"
    folder.mkdir(mode=0o500)
    if os.access(folder, os.W_OK):
        pytest.skip("needs a user whom permissions bind")
    for path in (folder, folder / "below"):
        with pytest.raises(InputError, match="cannot be written to"):
            files.make_folder(path)


def test_a_program_that_is_terminated_tidies_up(tmp_path):
    program = f"""
import pathlib, time
from kst_jax import cli, files
def main():
    with files.together(pathlib.Path({str(tmp_path)!r})) as folder:
        (folder / "half").touch()
        print("begun", flush=True)
        time.sleep(60)
cli.run(main)
"""
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=ROOT, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "begun\n"
        assert list(tmp_path.rglob("half"))
        process.terminate()
    assert process.returncode == 128 + signal.SIGTERM
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("cause", ["RESOURCE_EXHAUSTED: Out of memory", "INTERNAL: x"])
def test_lack_of_device_memory_is_told(cause, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["program"])

    def main():
        raise jax.errors.JaxRuntimeError(cause)

    before = signal.getsignal(signal.SIGTERM)
    try:
        with pytest.raises((SystemExit, jax.errors.JaxRuntimeError)) as ended:
            cli.run(main)
    finally:
        signal.signal(signal.SIGTERM, before)
    told = capsys.readouterr().err
    assert isinstance(ended.value, SystemExit) == ("less memory" in told)
    assert ("less memory" in told) == cause.startswith("RESOURCE")


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


def test_a_conversion_that_was_interrupted_can_be_repeated(
    config, tmp_path, monkeypatch
):
    def interrupted(*_, **__):
        (tmp_path / "checkpoints" / "0.orbax-checkpoint-tmp").mkdir()
        raise KeyboardInterrupt

    params = {"weight": np.zeros(3)}
    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            write_parameters(tmp_path, params, config)
    write_parameters(tmp_path, params, config)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0"]
    with pytest.raises(InputError, match="holds checkpoints already"):
        write_parameters(tmp_path, params, config)


def test_a_reader_that_has_seen_enough_is_no_error():
    program = [sys.executable, "-m", "kst_jax.doctor", "demo:train", "demo:test"]
    doctor = subprocess.Popen(
        program, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    doctor.stdout.close()
    assert b"rror" not in doctor.communicate()[1]
    assert doctor.returncode == 141
