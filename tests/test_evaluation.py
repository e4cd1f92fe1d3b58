"""What eval.py writes of a run that train.py made, and what it does not write over."""

import contextlib
import dataclasses
import json
import re
import shutil
from pathlib import Path
from types import SimpleNamespace

import h5py
import jax
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kst_jax.config_dict import from_dict
from kst_jax.data import opening, transforms
from kst_jax.data.sources import open_source
from kst_jax.errors import InputError
from kst_jax.evaluation import identity, reports
from kst_jax.evaluation.evaluate import evaluate
from kst_jax.mask_config import MaskConfig
from kst_jax.programs.files import alone_in
from tests.conftest import AUTHORS_CHECKPOINT
from tests.programs import TINY, refused, run_apart, run_here
from tests.scans import VOLUME, write_h5, write_nifti, write_npy


@pytest.fixture(scope="module")
def workdir(tmp_path_factory):
    path = tmp_path_factory.mktemp("run") / "tiny"
    done = run_apart("train.py", *TINY, f"--workdir={path}")
    assert done.returncode == 0, done.stderr
    assert "images/s" in done.stderr
    done = run_here("eval.py", *TINY, f"--workdir={path}")
    assert done.returncode == 0, done.stderr
    (path / "printed.txt").write_text(done.stdout)
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
        "eval/figures/attention.png",
    ):
        assert (workdir / name).exists(), name
    assert not list(workdir.rglob("*.tmp"))
    assert not list(workdir.rglob("*.partial*"))


@pytest.fixture(scope="module")
def expected(config):
    """By numpy: targets and zero-filled images (S, H, W) on each scale."""
    source, sampler = opening.open_test_source(config), opening.open_sampler(config)
    found = {"normalised": ([], []), "input": ([], [])}
    for item in (source[n] for n in range(len(source))):
        image = transforms.field_of_view(item.image, config.data, "")
        target = transforms.fourier_resize(image, config.data.size)
        # What was measured, and zeros, in units of its own root mean square.
        mask = sampler.fixed(item.file, item.index, config.eval.seed)
        zero_filled = transform(np.fft.ifft2, mask * transform(np.fft.fft2, target))
        unit = np.sqrt(np.mean([zero_filled.real**2, zero_filled.imag**2]))
        for number, image in enumerate((target, zero_filled)):
            found["input"][number].append(np.abs(image))
            found["normalised"][number].append(np.abs(image) / unit)
    return jax.tree.map(np.stack, found, is_leaf=lambda x: isinstance(x, list))


def transform(function, image):
    return np.fft.fftshift(function(np.fft.ifftshift(image), norm="ortho"))


@pytest.fixture(scope="module")
def written(workdir):
    with h5py.File(workdir / "eval" / "reconstructions" / "sub-0042_T1w.h5") as file:
        return file["reconstruction"][:]


def require_slice_scores(found, targets, images):
    psnr, ssim = [], []
    for image, target in zip(images, targets, strict=True):
        spans = {"data_range": np.ptp(target)}
        psnr.append(peak_signal_noise_ratio(target, image, **spans))
        ssim.append(structural_similarity(target, image, **spans))
    for name, scores, tolerance in (("psnr", psnr, 1e-3), ("ssim", ssim, 1e-4)):
        assert found[name]["mean"] == pytest.approx(np.mean(scores), abs=tolerance)
        assert found[name]["std"] == pytest.approx(np.std(scores), abs=tolerance)


def test_metrics_are_scikit_images_of_the_written_files(report, expected, written):
    found = report["slices"]["input"]["reconstruction"]
    require_slice_scores(found, expected["input"][0], written)


@pytest.mark.parametrize("scale", ["normalised", "input"])
def test_zero_filled_scores_are_scikit_images(report, expected, scale):
    found = report["slices"][scale]["zero_filled"]
    require_slice_scores(found, *expected[scale])


@pytest.mark.parametrize("method", ["zero_filled", "reconstruction"])
def test_volumes_are_scored_as_fastmri_does(report, expected, written, method):
    targets, zero_filled = expected["input"]
    images = {"zero_filled": zero_filled, "reconstruction": written}[method]
    span = {"data_range": targets.max()}
    found = report["per_volume"]["sub-0042_T1w"][method]
    nmse = np.sum((targets - images) ** 2) / np.sum(targets**2)
    assert found["nmse"] == pytest.approx(nmse, rel=1e-3)
    psnr = peak_signal_noise_ratio(targets, images, **span)
    assert found["psnr"] == pytest.approx(psnr, abs=1e-3)
    ssim = np.mean(
        [
            structural_similarity(target, image, **span)
            for target, image in zip(targets, images, strict=True)
        ]
    )
    assert found["ssim"] == pytest.approx(ssim, abs=1e-4)


def test_reconstructions_are_written_as_fastmri_does(workdir, config, expected):
    source = opening.open_test_source(config)
    with h5py.File(workdir / "eval" / "reconstructions" / "sub-0042_T1w.h5") as file:
        images = file["reconstruction"]
        assert (images.shape, images.dtype) == (expected["input"][0].shape, "f4")
        assert file["slice"][:].tolist() == [
            source.describe(n).index for n in range(len(source))
        ]
        assert "simulated" in file.attrs["kspace"]


def test_the_printed_table_is_of_the_metrics(workdir, report):
    lines = (workdir / "printed.txt").read_text().splitlines()
    found = report["slices"]
    gains = []
    for label, method in (("zero-filled", 0), ("reconstruction", 1)):
        (line,) = (line for line in lines if line.startswith(f"{label} "))
        numbers = [float(x) for x in re.findall(r"\d+\.\d+", line)]
        scores = [
            found[scale][reports.METHODS[method]][metric][of]
            for scale in ("normalised", "input")
            for metric in ("psnr", "ssim")
            for of in ("mean", "std")
        ]
        assert numbers == pytest.approx(scores, abs=0.0051)
        gains.append(np.array([scores[0], scores[4]]))
    (line,) = (line for line in lines if line.startswith("PSNR over zero-filled"))
    wanted = "PSNR over zero-filled: {:+.2f} dB normalised, {:+.2f} dB in input units"
    assert line == wanted.format(*(gains[1] - gains[0]))


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
        f"--config=saved:{workdir}",
        f"--workdir={workdir}",
        f"--config.data.test={shared / 'data' / 'brain_vfa_singlecoil.h5'}",
        "--config.data.slices=(0.0,1.0)",
        f"--config.eval.out={tmp_path}",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "metrics.json").read_text())
    assert report["kspace"] == "measured"
    assert report["slices"]["count"] == 3


@pytest.mark.slow
def test_a_converted_checkpoint_is_evaluated(tmp_path):
    kspace = np.random.default_rng(0).normal(size=(7, 40, 36, 2)).astype(np.float32)
    write_h5(tmp_path / "scan.h5", kspace.view(np.complex64)[..., 0])
    size = ("--lr_size", "16", "16")
    done = run_here("kst-convert", AUTHORS_CHECKPOINT, tmp_path / "out", *size)
    assert done.returncode == 0, done.stderr
    done = run_here(
        "eval.py",
        f"--config=saved:{tmp_path / 'out'}",
        f"--workdir={tmp_path / 'out'}",
        f"--config.data.test=demo:test,{tmp_path / 'scan.h5'}",
        "--config.data.slices=(0.4,0.6)",
    )
    assert done.returncode == 0, done.stderr
    report = json.loads((tmp_path / "out" / "eval" / "metrics.json").read_text())
    assert set(report["per_volume"]) == {"sub-0042_T1w", "scan"}
    assert report["volumes"]["count"] == 2
    for name, volume in report["per_volume"].items():
        path = tmp_path / "out" / "eval" / "reconstructions" / f"{name}.h5"
        with h5py.File(path) as file:
            assert len(file["reconstruction"]) == volume["slices"]


def test_eval_without_a_checkpoint_or_with_another_model(workdir, tmp_path):
    assert "no checkpoint here" in refused("eval.py", *TINY, f"--workdir={tmp_path}")
    error = refused("eval.py", *TINY, f"--workdir={workdir}", "--config.model.width=16")
    assert "model.width is 8 there and 16 here" in error


def test_inputs_of_another_scale_are_refused(workdir):
    error = refused(
        "eval.py", *TINY, f"--workdir={workdir}", "--config.data.normalise=target"
    )
    assert "trained with data.normalise='measured', but here data.normalise" in error
    for remedy in (f"--config=saved:{workdir}", "--config.data.normalise=measured"):
        assert remedy in error


def test_another_size_than_in_training_is_noted(config, workdir, tmp_path, capsys):
    changed = with_data(config, size=(24, 24), resize="plain")
    out = dataclasses.replace(config.eval, out=str(tmp_path), figures=0)
    evaluate(dataclasses.replace(changed, eval=out), workdir)
    told = capsys.readouterr().err.splitlines()
    assert [line for line in told if line.startswith("note: ")] == [
        f"note: data.size was (16, 16) in {workdir} and is now (24, 24)",
        f"note: data.resize was symmetric in {workdir} and is now plain",
    ]


def test_results_of_other_scans_are_not_overwritten(workdir):
    error = refused(
        "eval.py", *TINY, f"--workdir={workdir}", "--config.mask.acceleration=3.0"
    )
    assert "eval.out" in error


def test_results_move_with_their_run_and_its_scans(workdir, config, tmp_path):
    moved = Path(shutil.copytree(workdir, tmp_path / "moved"))
    elsewhere = with_data(config, train="/moved/too")
    test = identity.identify(moved / "eval", elsewhere, moved)
    identity.require_same_test(moved / "eval", test)
    of_a_copy = identity.identify(workdir / "eval", config, moved)
    with pytest.raises(InputError, match="another run"):
        identity.require_same_test(workdir / "eval", of_a_copy)


def test_results_of_scans_that_were_moved_may_be_replaced(config, tmp_path):
    def identify(test):
        return identity.identify(tmp_path, with_data(config, test=test), tmp_path)

    earlier = {"test": identify("/mnt/a/scans"), "per_volume": {"x": {}, "y": {}}}
    del earlier["test"]["data"]["subjects"]  # as an earlier version wrote it
    (tmp_path / "metrics.json").write_text(json.dumps(earlier))
    identity.require_same_test(tmp_path, identify("/mnt/b/scans/"))
    with pytest.raises(InputError, match="other scans"):
        identity.require_same_test(tmp_path, identify("/mnt/a/others"))
    for names, same in ((("y", "x"), True), (("x", "z"), False), (("x",), False)):
        # An earlier version wrote no fingerprints.
        source = SimpleNamespace(fingerprints={name: {"bytes": 9} for name in names})
        with contextlib.nullcontext() if same else pytest.raises(InputError):
            identity.require_same_volumes(tmp_path, source)


def test_results_say_which_files_they_are_of(report, config):
    found = report["per_volume"]["sub-0042_T1w"]
    wanted = opening.open_test_source(config).fingerprints["sub-0042_T1w"]
    assert found | wanted == found


def test_results_of_scans_of_the_same_names_are_not_overwritten(tmp_path):
    sites = {"a": VOLUME, "moved": VOLUME, "b": VOLUME + 1}
    for site, volume in sites.items():
        (tmp_path / site / "scans").mkdir(parents=True)
        write_nifti(tmp_path / site / "scans" / "p1.nii", volume)
    source = {site: open_source(str(tmp_path / site / "scans")) for site in sites}
    sizes = {one.fingerprints["p1"]["bytes"] for one in source.values()}
    assert len(sizes) == 1
    earlier = {"per_volume": source["a"].fingerprints}
    (tmp_path / "metrics.json").write_text(json.dumps(earlier))
    identity.require_same_volumes(tmp_path, source["moved"])
    with pytest.raises(InputError, match="other scans"):
        identity.require_same_volumes(tmp_path, source["b"])


def test_results_of_another_bank_of_the_same_name_are_not_overwritten(config, tmp_path):
    banks = {"a": np.eye(16), "moved": np.eye(16), "b": np.eye(16)[::-1]}
    tests = {}
    for site, bank in banks.items():
        (tmp_path / site).mkdir()
        write_npy(tmp_path / site / "masks.npy", bank[None] > 0)
        mask = MaskConfig(kind="bank", bank=str(tmp_path / site / "masks.npy"))
        changed = dataclasses.replace(config, mask=mask)
        tests[site] = identity.identify(tmp_path, changed, tmp_path)
    (tmp_path / "metrics.json").write_text(json.dumps({"test": tests["a"]}))
    identity.require_same_test(tmp_path, tests["moved"])
    with pytest.raises(InputError, match="another undersampling"):
        identity.require_same_test(tmp_path, tests["b"])
    del tests["a"]["bank"]  # as an earlier version wrote it
    (tmp_path / "metrics.json").write_text(json.dumps({"test": tests["a"]}))
    identity.require_same_test(tmp_path, tests["b"])


def test_a_folder_takes_one_evaluation_at_a_time(config, workdir, tmp_path):
    changed = dataclasses.replace(config.eval, out=str(tmp_path))
    message = f"{tmp_path}: another process is writing here"
    with alone_in(tmp_path), pytest.raises(InputError, match=message):
        evaluate(dataclasses.replace(config, eval=changed), workdir)
    assert not (tmp_path / "metrics.json").exists()


def test_whom_a_test_is_set_aside_from_decides_whose_results_they_are(config):
    found = [
        identity.identify(Path("out"), with_data(config, train=train, test=""), "run")
        for train in ("/scans", "/others")
    ]
    assert found[0] != found[1]


def with_data(config, **changes):
    data = dataclasses.replace(config.data, **changes)
    return dataclasses.replace(config, data=data)


def test_fig_3_shows_each_stage_under_its_name(
    config, workdir, tmp_path, monkeypatch, expected, written
):
    shown = {}
    draw = reports.figures.stages_figure

    def watched(images, spectra):
        shown.update(images=images, spectra=spectra)
        return draw(images, spectra)

    monkeypatch.setattr(reports.figures, "stages_figure", watched)
    changed = dataclasses.replace(config.eval, out=str(tmp_path), figures=1)
    evaluate(dataclasses.replace(config, eval=changed), workdir)
    middle = len(written) // 2
    images, spectra = shown["images"], shown["spectra"]
    names = ["LR", "Upsampled", "HR before refinement", "HR", "Target"]
    assert list(images) == list(spectra) == names
    assert images["LR"].shape == (8, 8)
    np.testing.assert_allclose(images["HR"], written[middle], rtol=1e-5)
    np.testing.assert_allclose(
        images["Target"], expected["input"][0][middle], rtol=1e-4, atol=1e-3
    )
    # Only the high-resolution decoder keeps what was measured.
    with np.load(tmp_path / "figures" / "slices.npz") as slices:
        (mask,) = slices["mask"]
    for name in names[1:-1]:
        same = np.allclose(spectra[name][mask], spectra["Target"][mask], atol=0.01)
        assert same == name.startswith("HR"), name


def test_a_perfect_slice_is_told_as_null():
    found = reports._finite({"psnr": [np.inf, 1.0], "mean": float("inf")})
    assert found == {"psnr": [None, 1.0], "mean": None}


def test_reconstructions_of_scans_that_are_gone_go(config, workdir, tmp_path):
    out = tmp_path / "out"
    changed = dataclasses.replace(config.eval, out=str(out), figures=0)
    config = dataclasses.replace(config, eval=changed)
    evaluate(config, workdir)
    before = out / "reconstructions" / "gone.h5"
    before.write_bytes(b"of a scan that was here")
    figure = out / "figures" / "attention.png"
    figure.parent.mkdir(exist_ok=True)
    figure.write_bytes(b"of the last time, with figures")
    (out / "notes.txt").write_text("the user's")
    evaluate(config, workdir)
    assert not figure.exists()
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


def test_an_evaluation_that_is_interrupted_leaves_no_results(
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
    assert [path.name for path in out.iterdir()] == [".lock"]


def test_a_file_in_the_way_of_its_folder(config, workdir, tmp_path):
    file = tmp_path / "file"
    file.write_text("something else")
    out = dataclasses.replace(config.eval, out=str(file / "below"))
    with pytest.raises(InputError, match=f"{file}.*: cannot be a folder"):
        evaluate(dataclasses.replace(config, eval=out), workdir)
    assert file.read_text() == "something else"
