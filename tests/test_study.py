"""Studies: cells, resumption, tables and intervals."""

import copy
import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
import scipy.stats

from kst_jax.errors import DivergedError, InputError
from kst_jax.metrics import psnr
from kst_jax.models.d5c5 import D5C5Config
from kst_jax.runs.checkpoints import read_parameters
from kst_jax.study import cells, clock, comparison
from kst_jax.study.command import run as run_study
from kst_jax.study.command import time_steps
from kst_jax.study.protocol import Cell, cells_of
from kst_jax.study.protocol import read as read_study
from tests.programs import run_here
from tests.test_training import TINY

pytestmark = pytest.mark.slow


def values():
    kst = {
        "model": dataclasses.asdict(TINY.model),
        # One stage: a program less to compile for each of the others.
        "train": {"batch_size": 4, "log_every": 1, "stages": (0.0, 0.0, 1.0)},
    }
    d5c5 = copy.deepcopy(kst)
    model = D5C5Config(cascades=1, layers=2, features=4)
    d5c5["model"] = {"name": "d5c5", **dataclasses.asdict(model)}
    mask = {"kind": "gaussian_2d", "acceleration": 4.0}
    return {
        "data": dataclasses.asdict(TINY.data),
        "eval": {"batch_size": 8, "figures": 2},
        "images": 16,
        "seeds": [0, 1],
        "references": ["kst", "d5c5"],
        "order": ["a", "b"],
        "settings": {"a": mask, "b": {**mask, "acceleration": 2.0}},
        "methods": {
            "kst": kst,
            "d5c5": {**d5c5, "title": "D5C5 in small", "images": 8},
        },
        "tables": {"One": {"settings": ["a", "b"], "methods": ["kst", "d5c5"]}},
    }


def copy_of(done, tmp_path):
    """A folder with the results alone."""
    shutil.copytree(done / "results", tmp_path / "results")
    return tmp_path


@pytest.fixture(scope="module")
def done(tmp_path_factory):
    folder = tmp_path_factory.mktemp("study")
    run_study(read_study(values()), folder, ["a/*/0", "a/d5c5/1"])
    return folder


def result(folder, name):
    return json.loads((folder / "results" / f"{name}.json").read_text())


def test_a_cell_is_a_run_and_its_result(done):
    found = result(done, "a/d5c5/1")
    assert (found["images"], found["config"]["train"]["steps"]) == (8, 2)
    assert found["config"]["train"]["seed"] == 1
    assert found["config"]["mask"]["acceleration"] == 4
    assert found["curve"]["images"] == [4, 8]
    rows = (done / "runs/a/d5c5/1/train.jsonl").read_text().splitlines()
    assert found["curve"]["psnr"] == [json.loads(row)["psnr"] for row in rows]
    params, *_ = read_parameters(done / "runs/a/d5c5/1")
    assert found["parameters"] == sum(x.size for x in jax.tree.leaves(params))
    assert found["train_s"] > 0
    assert found["device"] == "8 x cpu"
    report = json.loads((done / "runs/a/d5c5/1/eval/metrics.json").read_text())
    scores = [row["normalised"]["reconstruction"]["psnr"] for row in found["per_slice"]]
    mean = report["slices"]["normalised"]["reconstruction"]["psnr"]["mean"]
    np.testing.assert_allclose(np.mean(scores), mean)
    assert {row["subject"] for row in found["per_slice"]} == {"sub-0042"}


def test_only_what_a_table_shows_is_done():
    changed = values()
    changed["tables"] = {
        "One": {"settings": ["a"], "methods": ["kst", "d5c5"]},
        "Two": {"settings": ["b"], "methods": ["d5c5"]},
    }
    names = [cell.name for cell in cells_of(read_study(changed))]
    assert names == [
        *("a/kst/0", "a/d5c5/0", "a/kst/1", "a/d5c5/1"),
        *("b/d5c5/0", "b/d5c5/1"),
    ]


def test_a_sitting_that_was_stopped_counts(tmp_path, monkeypatch):
    def stopped(*_):
        raise SystemExit(0)

    monkeypatch.setattr(cells.loop, "train", stopped)
    with pytest.raises(SystemExit):
        cells.run(read_study(values()), Cell("a", "kst", 0), tmp_path)
    (sitting,) = (tmp_path / "runs/a/kst/0/sittings.txt").read_text().splitlines()
    assert sitting.endswith(" 8 x cpu")
    assert not (tmp_path / "results").exists()


def test_a_training_that_diverges_does_not_keep_others_from_theirs(
    tmp_path, monkeypatch, capsys
):
    train = cells.loop.train

    def diverging(config, run, maps):
        if config.train.seed == 0:
            raise DivergedError("loss is nan at step 1.")
        return train(config, run, maps)

    monkeypatch.setattr(cells.loop, "train", diverging)
    with pytest.raises(InputError, match="no results for a/d5c5/0: training diverged"):
        run_study(read_study(values()), tmp_path, ["a/d5c5/*"])
    assert "warning: a/d5c5/0: loss is nan at step 1." in capsys.readouterr().err
    assert [path.stem for path in tmp_path.glob("results/a/d5c5/*.json")] == ["1"]
    assert "D5C5 in small" in (tmp_path / "tables.md").read_text()


@pytest.mark.parametrize("method", ["zero_filled", "reconstruction"])
def test_images_of_the_figures_are_those_that_were_scored(done, method):
    with np.load(done / "results/a/kst/0.npz") as slices:
        scores = psnr(slices[method], slices["target"])
        assert len(scores) == 2
    found = [
        row["input"][method]["psnr"] for row in result(done, "a/kst/0")["per_slice"]
    ]
    for score in np.asarray(scores):
        assert np.isclose(found, score, rtol=1e-4).any()


def test_tables_tell_means_differences_and_gaps(done):
    rows = json.loads((done / "tables.json").read_text())["One"]
    assert list(rows) == ["zero_filled", "kst", "d5c5"]
    cells = {
        name: np.array(
            [
                row["normalised"]["reconstruction"]["psnr"]
                for row in result(done, name)["per_slice"]
            ]
        )
        for name in ("a/kst/0", "a/d5c5/0", "a/d5c5/1")
    }
    d5c5 = (cells["a/d5c5/0"] + cells["a/d5c5/1"]) / 2  # over seeds, slice by slice
    found, kst = rows["d5c5"]["a"], rows["kst"]["a"]
    np.testing.assert_allclose(found["normalised"]["psnr"]["mean"], d5c5.mean())
    np.testing.assert_allclose(found["normalised"]["psnr"]["std"], d5c5.std())
    for less, sign in ((found["less_this"]["kst"], 1), (kst["less_this"]["d5c5"], -1)):
        gain = less["normalised"]["psnr"]["mean"]
        np.testing.assert_allclose(gain, sign * (cells["a/kst/0"] - d5c5).mean())
    assert rows["kst"]["b"] is None
    assert found["seeds"] == [0, 1]
    text = (done / "tables.md").read_text()
    row = next(line for line in text.splitlines() if line.startswith("| D5C5 in small"))
    mean, std = d5c5.mean(), d5c5.std()
    assert "| 8 | " in row
    assert f"{mean:.2f} +- {std:.2f}" in row
    assert row.count("| - ") == 2


def test_zero_filled_images_are_of_the_studys_own_coils():
    """Not of a method that combines them; of all methods if each does."""
    changed = values()
    changed["data"]["coils"] |= {"count": 2, "calibration": 12}
    changed["methods"]["d5c5"]["coils"] = {"combine": True}
    study = read_study(changed)

    def scored(value):
        scores = {"zero_filled": dict.fromkeys(comparison.METRICS, value)}
        return {"per_slice": [{"subject": "a", "normalised": scores, "input": scores}]}

    combined = {Cell("a", "d5c5", n): scored(11.0 + n) for n in (0, 1)}
    own = {Cell("a", "kst", 0): scored(15.0)}
    for results, mean in ((combined | own, 15.0), (combined, 11.5)):
        found = comparison.gather(study, results, "a", "zero_filled")
        assert set(np.concatenate([*found.per_slice.values()])) == {mean}


def test_figures_show_all_methods(done, tmp_path, monkeypatch):
    names = {path.name for path in (done / "figures").iterdir()}
    assert names == {"a_curves.png", "a_methods.png"}
    shown = {}

    def watched(name):
        draw = getattr(comparison.figures, name)

        def figure(methods, *images):
            shown[name] = list(methods)
            return draw(methods, *images)

        monkeypatch.setattr(comparison.figures, name, figure)

    watched("learning_figure")
    watched("reconstruction_figure")
    found = read_study(values())
    comparison.write(found, cells.finished(found, done), copy_of(done, tmp_path))
    methods = ["K-Space Transformer", "D5C5 in small"]
    assert shown["learning_figure"] == methods
    assert shown["reconstruction_figure"] == ["Zero-filled", *methods]


def test_a_finished_cell_is_not_done_again(done, tmp_path, capsys):
    # The results alone tell, wherever the scans and the runs are now.
    copy_of(done, tmp_path)
    changed = values()
    changed["data"]["test"] = str(tmp_path / "elsewhere" / TINY.data.test)
    changed["data"]["workers"] = 1
    changed["eval"]["batch_size"] = 4
    run_study(read_study(changed), tmp_path, ["a/kst/0"])
    assert "a/kst/0: finished" in capsys.readouterr().out
    assert not (tmp_path / "runs").exists()
    before, after = ((x / "tables.json").read_text() for x in (done, tmp_path))
    assert before == after


def test_a_result_tells_all_devices_that_the_cell_was_trained_on(done, tmp_path):
    shutil.copytree(done, tmp_path, dirs_exist_ok=True)
    sittings = tmp_path / "runs/a/d5c5/1/sittings.txt"
    sittings.write_text(f"100.0 1 x NVIDIA H200\n{sittings.read_text()}")
    (tmp_path / "results/a/d5c5/1.json").unlink()
    run_study(read_study(values()), tmp_path, ["a/d5c5/1"])
    found = result(tmp_path, "a/d5c5/1")
    assert found["device"] == "1 x NVIDIA H200, 8 x cpu"
    assert found["train_s"] > 100


def test_minutes_of_different_devices_are_not_averaged(done, tmp_path):
    copy_of(done, tmp_path)
    shutil.copytree(tmp_path / "results/a", tmp_path / "results/b")
    for name, seconds, device in (
        *((f"a/d5c5/{seed}", 60.0 + 120 * seed, "8 x cpu") for seed in (0, 1)),
        *((f"b/d5c5/{seed}", 600.0, "1 x NVIDIA H200") for seed in (0, 1)),
    ):
        changed = result(tmp_path, name) | {"train_s": seconds, "device": device}
        setting = name.partition("/")[0]
        changed["config"]["mask"] = values()["settings"][setting]
        (tmp_path / f"results/{name}.json").write_text(json.dumps(changed))
    shutil.rmtree(tmp_path / "results/b/kst")
    found = read_study(values())
    tables = comparison.tabulate(found, cells.finished(found, tmp_path))
    text = comparison.markdown(found, tables)
    assert " | 2 (8 x cpu); 10 (1 x NVIDIA H200) | " in text


def test_results_of_another_study_are_refused(done):
    for section, key, value in (
        ("methods.kst.train", "learning_rate", 0.1),
        ("data", "test", "other.nii.gz"),  # masks go by names
        ("eval", "seed", 1),
        ("eval", "figures", 1),
    ):
        changed = part = values()
        for name in section.split("."):
            part = part[name]
        part[key] = value
        with pytest.raises(InputError, match=rf"a/kst/0.json.*{key}"):
            run_study(read_study(changed), done)


def test_results_of_other_slices_are_refused(done, tmp_path):
    path = copy_of(done, tmp_path) / "results/a/d5c5/0.json"
    changed = json.loads(path.read_text())
    changed["per_slice"] = changed["per_slice"][::-1]
    path.write_text(json.dumps(changed))
    with pytest.raises(InputError, match=r"d5c5/0.json: its test slices.*a/kst/0"):
        cells.finished(read_study(values()), tmp_path)


def test_a_damaged_result_is_told(done, tmp_path):
    copy_of(done, tmp_path)
    (tmp_path / "results/a/kst/0.json").write_text('{"config": ')
    with pytest.raises(InputError, match="delete it to rerun the cell"):
        run_study(read_study(values()), tmp_path)


@pytest.mark.parametrize(
    ("path", "value", "match"),
    [
        ("images", None, "missing"),
        ("references", ["unet"], "'unet' is not among methods"),
        ("tables.One.methods", ["kst", "oucr"], "'oucr' is not in methods"),
        ("methods.kst.model.widht", 4, "widht"),
        ("methods.kst.modle", {}, "modle"),
        ("settings.a.kind", 3, "kind"),
        ("images", 3, "steps"),
        ("images", 2e4, r"config\.images=20000\.0.*a whole number"),
        ("methods.kst.images", 1e4, r"methods\.kst: images=10000\.0.*a whole number"),
        ("methods.kst.title", 3, r"methods\.kst: title=3.*a text"),
        ("seeds", ["0"], r"config\.seeds='0'.*a whole number"),
        ("seeds", [0, 0], r"config\.seeds=\(0, 0\).*each once"),
        ("seeds", [], "at least one"),
        ("order", ["a"], "each of config.settings once"),
        (
            "methods.kst.title",
            "D5C5 in small",
            "more than one has the title 'D5C5 in small'",
        ),
        ("methods.kst.train.batch_size", 0, r"methods\.kst.*batch_size=0"),
        ("methods.kst.train.warmup_steps", 4, r"methods\.kst.*below train.steps=4"),
        ("eval.figures", 0, "a study needs figures"),
        ("eval.out", "results", "a folder of its own"),
        ("eval.checkpoint", "best", r"needs config\.methods\.kst\.train\.keep_best"),
    ],
)
def test_what_is_no_study_is_refused(path, value, match):
    changed = values()
    *parents, name = path.split(".")
    section = changed
    for parent in parents:
        section = section[parent]
    if value is None:
        del section[name]
    else:
        section[name] = value
    with pytest.raises(InputError, match=match):
        read_study(changed)


def test_the_interval_is_the_bootstraps():
    difference = np.random.default_rng(1).normal(0.3, 1.0, size=60) ** 3
    low, high = comparison.paired_interval(difference, np.zeros(60), block=1)
    wanted = scipy.stats.bootstrap(
        (difference,), np.mean, method="percentile", n_resamples=20_000, rng=0
    ).confidence_interval
    width = wanted.high - wanted.low
    np.testing.assert_allclose([low, high], wanted, atol=0.04 * width)


def test_the_interval_allows_for_neighbours_that_resemble_each_other():
    noise = np.random.default_rng(2).normal(size=200)
    difference = np.convolve(noise, np.ones(8) / 8, "same")[:192]
    block = 16
    low, high = comparison.paired_interval(difference, np.zeros(192), block)
    # The variance of a mean of 12 independent blocks, each as likely as any other.
    means = [np.roll(difference, -start)[:block].mean() for start in range(192)]
    wanted = 2 * 1.96 * np.std(means) / 12**0.5
    np.testing.assert_allclose(high - low, wanted, rtol=0.04)
    independent = comparison.paired_interval(difference, np.zeros(192), block=1)
    assert high - low > 1.5 * (independent[1] - independent[0])


@pytest.mark.parametrize("slices", [3, 8, 16, 17])
def test_few_slices_of_a_person_have_an_interval_too(slices):
    # A block that goes around a whole person would draw the same mean each time.
    difference = np.random.default_rng(3).normal(size=40 * slices)
    subject = np.repeat(np.arange(40), slices)
    low, high = comparison.paired_interval(difference, subject)
    within = [difference[subject == person].var() for person in range(40)]
    wanted = 2 * 1.96 * (np.mean(within) / len(difference)) ** 0.5
    np.testing.assert_allclose(high - low, wanted, rtol=0.15)


def test_people_do_not_lend_each_other_slices():
    # Two people who differ by much, but each of whom is always the same.
    difference = np.repeat([0.0, 10.0], 50)
    subject = np.repeat(["a", "b"], 50)
    assert comparison.paired_interval(difference, subject) == (5.0, 5.0)


@pytest.mark.parametrize(
    ("flag", "message"),
    [
        (
            "--cells=*/kst/0,nothing/*",
            "--cells=nothing/*: no such cell; there are uniform1d_5x/tv/0",
        ),
        ("--cells=", "--cells is empty"),
        ("--clock=0", "--clock=0: give at least 1 round"),
        ("--config.data.trian=x", "'trian'; valid keys"),
    ],
)
def test_mistakes_are_told(flag, message, tmp_path):
    program = ("kst-study", "--config=studies/small")
    done = run_here(*program, f"--workdir={tmp_path}", flag)
    assert done.returncode == 1
    assert message in done.stderr


def test_seeds_are_chosen_on_the_command_line(monkeypatch, tmp_path):
    seen = []
    monkeypatch.setattr(cells, "run", lambda study, cell, folder: seen.append(cell))
    monkeypatch.setattr(comparison, "write", lambda *_: "")
    program = ("kst-study", "--config=studies/small")
    flags = ("--config.seeds=(0,1,2)", "--cells=uniform1d_5x/unet/*")
    done = run_here(*program, f"--workdir={tmp_path}", *flags)
    assert done.returncode == 0, done.stderr
    assert [cell.seed for cell in seen] == [0, 1, 2]


def test_the_clock_times_every_method_in_each_round(tmp_path, monkeypatch, capsys):
    """Processor time stands still here, but for what each step is said to take."""
    now, costs = [0.0], {"kst": 6.0, "d5c5": 2.0}
    once, prepared = clock._Timed.once, clock._prepared

    def prepare(study, cell):
        one = prepared(study, cell)
        step = one.step

        def costing(state, batch):
            now[0] += costs[cell.method]
            return step(state, batch)

        one.step = costing
        return one

    states = []
    monkeypatch.setattr(clock, "_prepared", prepare)
    monkeypatch.setattr(clock.time, "process_time", lambda: now[0])
    monkeypatch.setattr(
        clock._Timed,
        "once",
        lambda one: (once(one), states.append(int(one.state.step))),
    )
    time_steps(read_study(values()), tmp_path, ["a/*/0"], 2)
    found = json.loads((tmp_path / "clock.json").read_text())
    # seconds per image of a batch of 4; the step to warm up is not among them
    assert found == {"a/kst/0": [1.5, 1.5], "a/d5c5/0": [0.5, 0.5]}
    assert states == [1, 1, 2, 2, 3, 3]  # it trains, in turn
    out = capsys.readouterr().out
    assert "| a/kst/0 | 1.5 (1.5-1.5) | 1.00 |" in out
    assert "| a/d5c5/0 | 0.5 (0.5-0.5) | 0.33 |" in out
