"""Runs whose scans are moved, and people who are not noted."""

import contextlib
import dataclasses

import pytest

from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.release.command import release
from kst_jax.runs import checkpoints, subjects
from kst_jax.runs.checkpoints import Checkpoints
from tests.test_checkpoints import CONFIG, PARAMS, saved


def with_scans(train, bank="", **data):
    mask = MaskConfig(kind="bank", bank=bank) if bank else CONFIG.mask
    values = dataclasses.replace(CONFIG.data, train=train, **data)
    return dataclasses.replace(CONFIG, data=values, mask=mask)


def test_a_run_carries_on_when_its_scans_are_moved(tmp_path, capsys):
    began = with_scans("/mnt/a/train, /mnt/a/x/*.h5", "/mnt/a/b.npy", test="/mnt/a/t/")
    saved(tmp_path, [2], began)
    moved = with_scans("/mnt/b/train,/mnt/x/*.h5", "/mnt/b/b.npy", test="/mnt/b/t")
    with contextlib.closing(Checkpoints(tmp_path, moved)) as run:
        assert run.begun
    assert (
        f"note: data.train was /mnt/a/train, /mnt/a/x/*.h5 in {tmp_path} and is now "
        "/mnt/b/train," in capsys.readouterr().err
    )
    for other in (
        with_scans("/mnt/b/others,/mnt/x/*.h5", "/mnt/b/b.npy", test="/mnt/b/t"),
        with_scans("/mnt/b/train,/mnt/x/*.h5", "/mnt/b/c.npy", test="/mnt/b/t"),
        dataclasses.replace(
            moved, data=dataclasses.replace(moved.data, subjects="(IXI[0-9]+)")
        ),
    ):
        with pytest.raises(InputError, match="another config"):
            Checkpoints(tmp_path, other)


@pytest.mark.parametrize("content", [None, "[]"])
def test_unknown_people_get_a_warning(tmp_path, capsys, content):
    people = tmp_path / "train_subjects.json"
    if content:
        people.write_text(content)
    subjects.require_unseen(tmp_path, ["sub-01"])
    what = "names nobody" if content else "is missing"
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {people} {what}, so the model may have been")
    subjects.write(tmp_path, {"train": ["sub-01"]}, carries_on=True)
    told = capsys.readouterr().err
    assert told.startswith(f"warning: {people} {what}, so the people in its scans")
    subjects.require_unseen(tmp_path, ["sub-02"])
    assert capsys.readouterr().err == ""


def test_a_release_does_not_say_nobody_where_nothing_is_known(tmp_path, monkeypatch):
    monkeypatch.setattr(
        checkpoints, "read_parameters", lambda *_: (PARAMS, CONFIG, CONFIG.train.steps)
    )
    release(str(tmp_path / "run"), str(tmp_path / "out"))
    assert not list((tmp_path / "out").glob("*_subjects.json"))
