"""Folders of runs: what is read back, and what is refused."""

import contextlib
import dataclasses
import errno
import json
import shutil
import tempfile

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest

from kst_jax.config import Config, KSTConfig, TrainConfig
from kst_jax.data_config import DataConfig
from kst_jax.errors import InputError
from kst_jax.runs import agreement, checkpoints, integrity
from kst_jax.runs.checkpoints import Checkpoints
from kst_jax.training.loop import State

CONFIG = Config(data=DataConfig(size=(32, 32)), model=KSTConfig(lr_size=(16, 16)))
PARAMS = {"a": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}


def test_written_parameters_are_read_back(tmp_path):
    checkpoints.write_parameters(tmp_path / "out", PARAMS, CONFIG)
    params, config, step = checkpoints.read_parameters(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    assert (config, step) == (CONFIG, 0)
    assert checkpoints.read_config(tmp_path / "out") == CONFIG


# Patterns that match a folder beside them, and what paths rarely hold.
ODD_NAMES = [
    "study 2026",
    "study [2026]",
    "a",
    "ab",
    "a*",
    "a?",
    "{a,b}",
    "back\\slash",
]
ODD_NAMES += [
    "-x",
    "~me",
    "50%",
    "%20",
    "a#b",
    "two\nlines",
    "$HOME",
    "K\udcf6rper",
    "日本",
]


def test_folders_may_have_any_name(tmp_path):
    for number, name in enumerate(ODD_NAMES, 1):
        folder = tmp_path / name
        saved(folder / "run", [number])
        params = {"a": {"kernel": np.full((2, 3), -number, np.float32)}}
        checkpoints.write_parameters(folder / "out", params, CONFIG)
    for number, name in enumerate(ODD_NAMES, 1):
        with contextlib.closing(Checkpoints(tmp_path / name / "run", CONFIG)) as run:
            assert run.restore(state(0)).step == number, name
        read, _, _ = checkpoints.read_parameters(tmp_path / name / "out")
        assert set(np.ravel(read["a"]["kernel"])) == {-number}, name


def test_a_temporary_folder_with_an_odd_name_is_told(tmp_path, monkeypatch):
    (tmp_path / "[t]").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "[t]"))
    with pytest.raises(InputError, match="set TMPDIR"):
        saved(tmp_path / "[2026]", [1])


def test_parameters_that_are_not_finite_are_refused(tmp_path):
    for value in (np.nan, np.inf):
        params = {"a": {"kernel": np.array([0, value, value], np.float32)}}
        params["b"] = {"bias": np.full(2, value, np.float32)}
        checkpoints.write_parameters(tmp_path / str(value), params, CONFIG)
        with pytest.raises(InputError, match="2 of the 3 values of a/kernel are not"):
            checkpoints.read_parameters(tmp_path / str(value))


def test_a_folder_with_checkpoints_is_not_written_again(tmp_path):
    checkpoints.write_parameters(tmp_path, PARAMS, CONFIG)
    with pytest.raises(InputError, match="already holds checkpoints"):
        checkpoints.write_parameters(tmp_path, PARAMS, CONFIG)


def test_a_conversion_that_was_interrupted_can_be_repeated(tmp_path, monkeypatch):
    def interrupted(*_, **__):
        (tmp_path / "checkpoints" / "0.orbax-checkpoint-tmp").mkdir()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(ocp.CheckpointManager, "save", interrupted)
        with pytest.raises(KeyboardInterrupt):
            checkpoints.write_parameters(tmp_path, PARAMS, CONFIG)
    checkpoints.write_parameters(tmp_path, PARAMS, CONFIG)
    assert [path.name for path in (tmp_path / "checkpoints").iterdir()] == ["0"]
    with pytest.raises(InputError, match="already holds checkpoints"):
        checkpoints.write_parameters(tmp_path, PARAMS, CONFIG)


def test_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint here.*kst-train"):
        checkpoints.read_parameters(tmp_path)
    with pytest.raises(InputError, match=r"config\.json: not found"):
        checkpoints.read_config(tmp_path)


def damage_missing(path):
    path.unlink()


def damage_truncated(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def damage_flipped(path):
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 4
    path.write_bytes(content)


DAMAGES = [damage_missing, damage_truncated, damage_flipped]


def files_read_back(path):
    """All files of a checkpoint but those of Orbax's that only note times."""
    found = (p for p in path.rglob("*") if p.is_file())
    return sorted(p for p in found if p.parent != path or p.name == "checksums.json")


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_refused(tmp_path, damage):
    """Whatever file it is that is damaged."""
    checkpoints.write_parameters(tmp_path, PARAMS, CONFIG)
    checkpoint = tmp_path / "checkpoints" / "0"
    files = files_read_back(checkpoint)
    assert len(files) > 8
    shutil.copytree(checkpoint, tmp_path / "good")
    for file in files:
        damage(file)
        name = "" if file.name == "checksums.json" else file.relative_to(checkpoint)
        with pytest.raises(InputError, match=f"all checkpoints are damaged: 0: {name}"):
            checkpoints.read_parameters(tmp_path)
        shutil.rmtree(checkpoint)
        shutil.copytree(tmp_path / "good", checkpoint)
    checkpoints.read_parameters(tmp_path)


def state(step, **changes):
    params = {"a": {"kernel": jnp.full((300, 40), step, jnp.float32)}}
    values = {
        "step": jnp.int32(step),
        "params": params,
        "ema": jax.tree.map(lambda x: -x, params),
        "optimizer": ({"mu": jnp.float32(step)},),
    }
    return State(**values | changes)


def run_of(**changes):
    return dataclasses.replace(CONFIG, train=TrainConfig(**changes))


def saved(workdir, steps, config=CONFIG):
    """A run's folder, with checkpoints whose validation PSNR may be given."""
    scores = steps if isinstance(steps, dict) else dict.fromkeys(steps)
    with contextlib.closing(Checkpoints(workdir, config)) as run:
        for step, psnr in scores.items():
            run.save(
                step, state(step), {} if psnr is None else {"validation_psnr": psnr}
            )
    return workdir


def names(workdir):
    return sorted(path.name for path in (workdir / "checkpoints").iterdir())


def test_without_targets_the_lowest_loss_is_the_best(tmp_path):
    config = run_of(supervision="self", validate_every=2, keep_best=1, keep=1)
    with contextlib.closing(Checkpoints(tmp_path, config)) as run:
        for step, loss in ((2, 0.3), (4, 0.1), (6, 0.2)):
            run.save(step, state(step), {"validation_loss": loss})
    assert names(tmp_path) == ["4", "6"]
    assert checkpoints.read_parameters(tmp_path, "best")[2] == 4


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_checkpoint_before_a_damaged_one_is_used(tmp_path, damage, capsys):
    saved(tmp_path, [2, 4, 6], run_of(keep=3))
    folder = tmp_path / "checkpoints"
    files = files_read_back(folder / "6" / "params")
    damage(max(files, key=lambda path: path.stat().st_size))
    params, _, step = checkpoints.read_parameters(tmp_path)
    assert step == 4
    assert np.all(params["a"]["kernel"] == -4)  # the moving average
    assert names(tmp_path) == ["2", "4", "6"]  # reading changes nothing
    with contextlib.closing(Checkpoints(tmp_path, run_of(keep=3))) as run:
        found = run.restore(state(0))
        assert int(found.step) == 4
        jax.tree.map(np.testing.assert_array_equal, found, state(4))
        run.save(6, state(6), {})
        assert run.latest() == str(folder / "6")
    assert names(tmp_path) == ["2", "4", "6", "6.damaged"]
    assert checkpoints.read_parameters(tmp_path)[2] == 6
    told = capsys.readouterr().err.splitlines()
    assert len(told) == 2
    for line in told:
        assert line.startswith(f"warning: {folder / '6'} is damaged (params/")
        assert line.endswith(f"using {folder / '4'}")


def test_a_step_is_damaged_twice(tmp_path):
    for _ in range(2):
        saved(tmp_path, [2, 4])
        damage_flipped(tmp_path / "checkpoints" / "4" / "checksums.json")
        Checkpoints(tmp_path, CONFIG).close()
    assert names(tmp_path) == ["2", "4.damaged", "4.damaged1"]


def test_damaged_checkpoints_alone_are_refused_and_kept(tmp_path):
    saved(tmp_path, [2, 4])
    for step in ("2", "4"):
        damage_missing(tmp_path / "checkpoints" / step / "config" / "metadata")
    for _ in range(2):
        with pytest.raises(InputError, match=r"4: config/metadata is missing; 2: conf"):
            Checkpoints(tmp_path, CONFIG)
    assert names(tmp_path) == ["2", "4"]


def test_what_was_not_finished_is_neither_read_nor_in_the_way(tmp_path):
    saved(tmp_path, [2])
    folder = tmp_path / "checkpoints"
    shutil.copytree(folder / "2", folder / "4.orbax-checkpoint-tmp")
    assert checkpoints.read_parameters(tmp_path)[2] == 2
    saved(tmp_path, [4])
    assert names(tmp_path) == ["2", "4"]


def test_another_state_is_no_damage(tmp_path):
    saved(tmp_path, [2])
    other = state(0, params={"b": jnp.zeros(3)})
    with (
        contextlib.closing(Checkpoints(tmp_path, CONFIG)) as run,
        pytest.raises(InputError, match=r"checkpoints/2: undamaged, but"),
    ):
        run.restore(other)
    assert names(tmp_path) == ["2"]


def test_converted_parameters_are_not_trained_further(tmp_path):
    checkpoints.write_parameters(tmp_path, PARAMS, CONFIG)
    with (
        contextlib.closing(Checkpoints(tmp_path, CONFIG)) as run,
        pytest.raises(InputError, match="converted"),
    ):
        run.restore(state(0))


def test_what_is_written_is_the_state_of_its_step(tmp_path):
    """Though training goes on meanwhile, in the same memory."""
    advance = jax.jit(lambda x: jax.tree.map(lambda y: y + 1, x), donate_argnums=0)
    now = {"kernel": jnp.zeros((1000, 1000)), "bias": jnp.zeros(())}
    with contextlib.closing(Checkpoints(tmp_path, run_of(keep=9))) as run:
        for step in range(1, 31):
            before, now = now, advance(now)
            assert before["kernel"].is_deleted()
            if step % 10 == 0:
                run.save(step, state(step, params=now, ema=None), {})
    for step in (10, 20, 30):
        path = tmp_path / "checkpoints" / str(step)
        found = checkpoints._read(path, {"params": ocp.args.StandardRestore(now)})
        for leaf in jax.tree.leaves(found["params"]):
            assert np.all(np.asarray(leaf) == step)


def test_the_latest_and_the_best_are_kept(tmp_path):
    scores = {1: 20.0, 2: 25.0, 3: 22.0, 4: None, 5: 21.0, 6: 21.0, 7: None, 8: 3.0}
    config = run_of(keep=2, keep_best=2, validate_every=1)
    saved(tmp_path, scores, config)
    assert names(tmp_path) == ["2", "3", "7", "8"]
    assert checkpoints.read_parameters(tmp_path, "best")[2] == 2
    assert checkpoints.read_parameters(tmp_path, "latest")[2] == 8
    saved(tmp_path, {9: 23.0, 10: 4.0}, config)  # after a restart
    assert names(tmp_path) == ["10", "2", "9"]


@pytest.mark.parametrize("damage", DAMAGES)
def test_the_next_best_where_the_best_is_damaged(tmp_path, damage, capsys):
    config = run_of(keep=1, keep_best=2, validate_every=1)
    saved(tmp_path, {1: 25.0, 2: 26.0, 3: 20.0}, config)
    damage(tmp_path / "checkpoints" / "2" / "metrics" / "metrics")
    assert checkpoints.read_parameters(tmp_path, "best")[2] == 1
    assert "checkpoints/2 is damaged (metrics/metrics" in capsys.readouterr().err
    saved(tmp_path, {4: 1.0}, config)
    assert names(tmp_path) == ["1", "2.damaged", "3", "4"]


def test_the_best_needs_a_validation(tmp_path):
    saved(tmp_path, [1, 2])
    with pytest.raises(
        InputError, match=r"no checkpoint was validated.*validate_every"
    ):
        checkpoints.read_parameters(tmp_path, "best")


@pytest.mark.parametrize("ends", ["save", "latest", "close"])
def test_what_cannot_be_written_is_told_and_the_last_good_one_stays(
    tmp_path, monkeypatch, ends
):
    """A disk that is full while the writing goes on in its thread."""

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    config = run_of(keep=1)
    saved(tmp_path, [2], config)
    with contextlib.ExitStack() as stack:
        run = stack.enter_context(contextlib.closing(Checkpoints(tmp_path, config)))
        monkeypatch.setattr(integrity, "note", full)
        run.save(4, state(4), {})
        with pytest.raises(
            InputError, match=r"No space left on device.*good one is .*checkpoints/2;"
        ):
            run.save(6, state(6), {}) if ends == "save" else getattr(run, ends)()
    monkeypatch.undo()
    assert checkpoints.read_parameters(tmp_path)[2] == 2
    saved(tmp_path, [4], config)
    assert names(tmp_path) == ["4"]


def test_a_run_is_trained_by_one_process_at_a_time(tmp_path):
    with contextlib.closing(Checkpoints(tmp_path, CONFIG)) as run:
        assert not run.begun
        with pytest.raises(InputError, match="another process is writing here"):
            Checkpoints(tmp_path, CONFIG)
        run.save(2, state(2), {})
    with contextlib.closing(Checkpoints(tmp_path, CONFIG)) as run:
        assert run.begun


def test_parameters_that_cannot_be_written_are_told(tmp_path, monkeypatch):
    def full(*_, **__):
        raise ValueError("RESOURCE_EXHAUSTED: No space left on device")

    monkeypatch.setattr(ocp.CheckpointManager, "save", full)
    with pytest.raises(InputError, match=r"cannot be written .*No space left"):
        checkpoints.write_parameters(tmp_path, PARAMS, CONFIG)


def test_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"data": ')
    with pytest.raises(InputError, match=r"config\.json: cannot be read"):
        checkpoints.read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"data": {"sise": [1, 2]}}))
    with pytest.raises(InputError, match=r"no key 'sise'; valid keys: .*size"):
        checkpoints.read_config(tmp_path)


def test_the_first_difference_between_models_is_named():
    wider = dataclasses.replace(CONFIG, model=KSTConfig(width=64, lr_size=(16, 16)))
    with pytest.raises(InputError, match=r"model\.width is 256 there and 64 here"):
        agreement.require_same_model(CONFIG, wider, "runs/x")
    agreement.require_same_model(CONFIG, CONFIG, "runs/x")


def test_checkpoints_without_the_runs_config_are_not_carried_on(tmp_path):
    checkpoints.write_parameters(tmp_path, PARAMS, CONFIG)
    (tmp_path / "config.json").unlink()
    with pytest.raises(InputError, match=r"config\.json: not found"):
        checkpoints.Checkpoints(tmp_path, CONFIG)
