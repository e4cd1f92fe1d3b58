"""Parameters alone, as `release` writes them."""

import dataclasses

import jax
import numpy as np
import pytest

from kst_jax.errors import InputError
from kst_jax.evaluation.evaluate import evaluate
from kst_jax.release.command import release
from kst_jax.runs import checkpoints, subjects
from kst_jax.training import loop
from tests.programs import run_here
from tests.test_training import TINY

pytestmark = pytest.mark.slow

PROGRAM = "kst-release"


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = dataclasses.replace(
        TINY, train=dataclasses.replace(TINY.train, steps=2, ema=0.9, stages=(0, 0, 1))
    )
    loop.train(config, folder)
    return folder


def test_what_is_evaluated_is_what_was_trained(run, tmp_path):
    done = run_here(PROGRAM, run, tmp_path / "out", "--test=demo:test")
    assert done.returncode == 0, done.stderr
    assert "kst-eval" in done.stdout
    params, config, _ = checkpoints.read_parameters(tmp_path / "out")
    trained, _, _ = checkpoints.read_parameters(run)
    jax.tree.map(np.testing.assert_array_equal, params, trained)
    assert config.data.test == "demo:test"
    assert subjects.read(tmp_path / "out", "train") == ["sub-0017"]
    scores = [
        evaluate(config, folder)["per_slice"] for folder in (run, tmp_path / "out")
    ]
    assert scores[0] == scores[1]


def test_a_release_is_smaller_and_cannot_be_trained_further(run, tmp_path):
    release(str(run), str(tmp_path / "out"))

    def size(folder):
        return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())

    assert size(tmp_path / "out") < size(run / "checkpoints") / 3
    _, config, _ = checkpoints.read_parameters(tmp_path / "out")
    with pytest.raises(InputError, match="evaluated but not trained further"):
        loop.train(config, tmp_path / "out")


def test_mistakes_get_one_message(run, tmp_path):
    release(str(run), str(tmp_path / "out"))
    for args, message in (
        ((run, tmp_path / "out"), "already holds checkpoints"),
        ((tmp_path, tmp_path / "new"), "no checkpoint here"),
    ):
        done = run_here(PROGRAM, *args)
        assert done.returncode == 1
        assert done.stderr.startswith("error: ")
        assert message in done.stderr


def test_of_paths_only_names_are_kept(run, tmp_path, monkeypatch):
    params, config, _ = checkpoints.read_parameters(run)
    data = dataclasses.replace(config.data, train="/home/me/a.nii,/b/*.h5,demo:test")
    private = dataclasses.replace(
        config,
        data=data,
        mask=dataclasses.replace(config.mask, kind="bank", bank="/home/me/masks.npy"),
        eval=dataclasses.replace(config.eval, out="/home/me/out", checkpoint="best"),
    )
    monkeypatch.setattr(checkpoints, "read_parameters", lambda *_: (params, private, 2))
    release(str(run), str(tmp_path / "out"))
    config = checkpoints.read_config(tmp_path / "out")
    assert config.data.train == "a.nii,*.h5,demo:test"
    assert config.mask.bank == "masks.npy"
    assert (config.eval.out, config.eval.checkpoint) == ("", "latest")
