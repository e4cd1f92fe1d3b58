"""Validation in training: whom on, what it says, what it leaves alone."""

import dataclasses
import functools
import json
import shutil

import jax
import nibabel as nib
import numpy as np
import pytest
from skimage.metrics import peak_signal_noise_ratio, structural_similarity

from kst_jax.config import TrainConfig
from kst_jax.config_dict import from_dict
from kst_jax.data import opening, transforms
from kst_jax.data_config import DataConfig
from kst_jax.errors import InputError
from kst_jax.eval_config import EvalConfig
from kst_jax.evaluation.evaluate import evaluate
from kst_jax.fourier import magnitude
from kst_jax.models.kst import KSpaceTransformer, reconstruct_slice
from kst_jax.release.command import release
from kst_jax.runs import subjects
from kst_jax.runs.checkpoints import read_parameters
from kst_jax.runs.integrity import steps_in
from kst_jax.training import loop
from kst_jax.training.loop import train
from kst_jax.training.validation import Validator
from tests.test_training import TINY, rows

pytestmark = pytest.mark.slow

PEOPLE = ("sub-1", "sub-2", "sub-3", "sub-4", "sub-5")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Scans of five people, 3 slices each."""
    path = tmp_path_factory.mktemp("scans")
    rng = np.random.default_rng(0)
    smooth = np.add.outer(np.hanning(16), np.hanning(16))[..., None]
    for name in PEOPLE:
        volume = 50 * smooth + rng.uniform(0, 10, (16, 16, 3))
        nib.save(nib.Nifti1Image(volume.astype("f4"), np.eye(4)), path / f"{name}.nii")
    return path


def scans(folder, people):
    return ",".join(str(folder / f"{name}.nii") for name in people)


def config_of(folder, people=PEOPLE[:4], validation="", **changes):
    data = DataConfig(
        train=scans(folder, people),
        test=scans(folder, PEOPLE[4:]),
        validation=validation,
        size=(16, 16),
        normalise="target",
        split_seed=2,
    )
    settings = {"steps": 6, "batch_size": 2, "log_every": 1, "image_every": 0}
    settings |= {"ema": 0.5, "learning_rate": 1e-2, "validate_every": 2, "keep": 9}
    model = dataclasses.replace(TINY.model, refinement=False)
    train = TrainConfig(**settings | changes)
    # Another seed than the validation's, whose masks do not go by the test's.
    test = EvalConfig(seed=7)
    return dataclasses.replace(TINY, data=data, model=model, train=train, eval=test)


def sources(config):
    return opening.set_validation_apart(config, *opening.open_sources(config))


@pytest.fixture(scope="module")
def finished(folder, tmp_path_factory):
    workdir = tmp_path_factory.mktemp("validated")
    config = config_of(folder)
    return config, workdir, train(config, workdir)


def checkpoint_only(workdir, step, tmp_path):
    """The run's folder as it was after a step."""
    (tmp_path / "checkpoints").mkdir()
    (tmp_path / "checkpoints" / str(step)).symlink_to(
        workdir / "checkpoints" / str(step)
    )
    return tmp_path


@pytest.mark.parametrize(
    ("step", "image_of"), [(2, lambda x: x.upsampled), (6, lambda x: x.image)]
)
def test_scores_are_scikit_images_of_people_set_apart(
    finished, tmp_path, step, image_of
):
    """With the moving average of the parameters, as far as the stage reconstructs."""
    config, workdir, _ = finished
    row = rows(workdir)[step - 1]
    assert row["stage"] == {2: "LR", 6: "K"}[step]
    params, _, found = read_parameters(checkpoint_only(workdir, step, tmp_path))
    assert found == step
    _, source = sources(config)
    sampler = opening.open_sampler(config)
    model = KSpaceTransformer(config.model)
    psnr, ssim = [], []
    for item in (source[n] for n in range(len(source))):
        mask = sampler.fixed(item.file, item.index, config.data.split_seed)
        target, kspace, _ = transforms.normalise(item.image, mask, "target", "")
        output = image_of(reconstruct_slice(model, params, kspace, mask))
        image, target = np.asarray(magnitude(output[0])), np.hypot(*target.T).T
        span = {"data_range": np.ptp(target)}
        psnr.append(peak_signal_noise_ratio(target, image, **span))
        ssim.append(structural_similarity(target, image, **span))
    assert len(psnr) == 3
    assert row["validation_psnr"] == pytest.approx(np.mean(psnr), abs=1e-3)
    assert row["validation_ssim"] == pytest.approx(np.mean(ssim), abs=1e-4)


def test_every_validation_is_logged_and_saved(finished):
    _, workdir, _ = finished
    validated = [row["step"] for row in rows(workdir) if "validation_psnr" in row]
    assert validated == [2, 4, 6]
    for step in validated:
        path = workdir / "checkpoints" / str(step) / "metrics" / "metrics"
        scores = json.loads(path.read_text())
        row = rows(workdir)[step - 1]
        assert scores.items() <= row.items()
        assert len(scores) == 2


def test_validation_does_not_change_training(finished, folder, tmp_path):
    _, workdir, state = finished
    trained = subjects.read(workdir, "train")
    alone = config_of(folder, trained, validate_every=0)
    other = train(alone, tmp_path)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state, other)))
    without = [
        {name: x for name, x in row.items() if not name.startswith("validation")}
        for row in rows(workdir)
    ]
    assert rows(tmp_path) == without
    assert subjects.read(tmp_path, "validation") == []


@pytest.mark.parametrize("which", [2, 3])
def test_a_stop_in_a_validation_leaves_no_trace(
    finished, folder, tmp_path, monkeypatch, which
):
    """It saves at once; the next start validates first, at the last step too."""
    config, workdir, state = finished
    calls, validate = [], Validator.__call__

    def interrupted(self, params, stage, stops):
        calls.append(stage)
        asked = iter([False, True])
        if len(calls) == which:
            stops = functools.partial(next, asked)
        return validate(self, params, stage, stops)

    monkeypatch.setattr(Validator, "__call__", interrupted)
    train(config, tmp_path)
    step = 2 * which
    assert [row["step"] for row in rows(tmp_path)] == list(range(1, step))
    assert steps_in(tmp_path / "checkpoints")[0] == step
    again = train(config, tmp_path)
    assert len(calls) == 4  # three validations, and one of them twice
    assert rows(tmp_path) == rows(workdir)
    assert all(jax.tree.leaves(jax.tree.map(np.array_equal, state, again)))
    for path in (workdir, tmp_path):
        *_, found = read_parameters(path, "best")
        assert found == best_of(workdir)


def best_of(workdir):
    scores = {row["step"]: row.get("validation_psnr", 0) for row in rows(workdir)}
    return max(scores, key=scores.get)


def test_the_best_checkpoint_is_evaluated(finished, tmp_path):
    config, workdir, _ = finished
    scores = {
        row["step"]: row["validation_psnr"]
        for row in rows(workdir)
        if "validation_psnr" in row
    }
    best = max(scores, key=scores.get)
    assert best != max(scores)  # or the latest one would do
    out = EvalConfig(checkpoint="best", out=str(tmp_path), figures=0)
    report = evaluate(dataclasses.replace(config, eval=out), workdir)
    assert report["step"] == best


def test_an_early_checkpoint_is_evaluated_as_far_as_it_was_trained(
    finished, folder, tmp_path, capsys
):
    config, workdir, _ = finished
    people = scans(folder, subjects.read(workdir, "validation"))
    run = checkpoint_only(workdir, 2, tmp_path)
    report = evaluate(
        dataclasses.replace(
            config,
            data=dataclasses.replace(config.data, test=people),
            eval=EvalConfig(figures=1, seed=config.data.split_seed),
        ),
        run,
    )
    assert (report["step"], report["stage"]) == (2, "LR")
    assert "Step 2 is from training stage LR" in capsys.readouterr().out
    mean = report["slices"]["normalised"]["reconstruction"]["psnr"]["mean"]
    assert mean == pytest.approx(rows(workdir)[1]["validation_psnr"], abs=1e-4)
    with pytest.raises(InputError, match="step 2 is from training stage LR"):
        release(str(run), str(tmp_path / "released"))


def test_a_run_carries_on_with_the_people_it_began_with(finished, tmp_path):
    config, workdir, _ = finished
    shutil.copytree(workdir, tmp_path / "run")
    path = tmp_path / "run" / "train_subjects.json"
    path.write_text(json.dumps([*json.loads(path.read_text()), "sub-9"]))
    before = path.read_text()
    with pytest.raises(
        InputError, match=r"train: sub-9 added or removed.*new --workdir"
    ):
        train(config, tmp_path / "run")
    assert path.read_text() == before


def test_people_of_a_run_without_a_checkpoint_bind_nobody(
    finished, tmp_path, monkeypatch
):
    def begin(*_):
        raise InputError("begun")

    config, workdir, _ = finished
    subjects.write(tmp_path, {"train": ["sub-9"]})
    monkeypatch.setattr(loop, "init_state", begin)
    with pytest.raises(InputError, match="begun"):
        train(config, tmp_path)
    assert subjects.read(tmp_path, "train") == subjects.read(workdir, "train")


@pytest.mark.parametrize("part", ["train", "validation"])
def test_people_a_model_was_made_on_are_not_tested(finished, folder, part):
    config, workdir, _ = finished
    people = subjects.read(workdir, part)
    assert len(people) == {"train": 3, "validation": 1}[part]
    data = dataclasses.replace(config.data, test=scans(folder, people[-1:]))
    use = {"train": "trained on", "validation": "chosen in validation on"}[part]
    with pytest.raises(InputError, match=f"{people[-1]} is among the test .*{use}"):
        evaluate(dataclasses.replace(config, data=data), workdir)


@pytest.mark.parametrize(
    ("name", "counts"), [("split_seed", True), ("seed", False), ("draw_seed", False)]
)
def test_people_are_set_apart_by_their_seed_alone(name, counts, folder):
    config = config_of(folder)
    kept, apart = sources(config)
    assert sorted(kept.subjects + apart.subjects) == list(PEOPLE[:4])
    assert len(apart.subjects) == 1
    assert sources(config)[1].subjects == apart.subjects
    seeded = (
        sources(
            dataclasses.replace(
                config, data=dataclasses.replace(config.data, **{name: n})
            )
        )
        for n in range(8)
    )
    assert (len({other.subjects for _, other in seeded}) > 1) == counts


def test_named_validation_scans(folder):
    config = config_of(folder, PEOPLE[:3], scans(folder, PEOPLE[3:4]))
    kept, apart = sources(config)
    assert (kept.subjects, apart.subjects) == (PEOPLE[:3], PEOPLE[3:4])


@pytest.mark.parametrize(
    ("people", "validation", "message"),
    [
        (PEOPLE[:3], PEOPLE[1:2], "sub-2 is in the training and in the validation"),
        (PEOPLE[:3], PEOPLE[4:5], "sub-5 is in the test and in the validation"),
        (PEOPLE[:1], (), "validate_every needs people.*only sub-1"),
    ],
)
def test_nobody_is_on_two_sides(folder, people, validation, message):
    config = config_of(folder, people, scans(folder, validation))
    with pytest.raises(InputError, match=message):
        sources(config)


def test_nobody_is_set_apart_without_validation(folder):
    kept, apart = sources(config_of(folder, validate_every=0))
    assert (kept.subjects, apart) == (PEOPLE[:4], None)


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        ("train", {"keep_best": 1}, r"train\.keep_best=1.*validate_every"),
        ("train", {"validate_every": -1}, r"train\.validate_every=-1"),
        ("data", {"validation_fraction": 1.0}, r"data\.validation_fraction=1\.0"),
        ("eval", {"checkpoint": "first"}, r"eval\.checkpoint='first'.*best"),
    ],
)
def test_settings_that_cannot_be(section, values, message):
    with pytest.raises(InputError, match=message):
        from_dict({section: values})
