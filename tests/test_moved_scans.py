"""Runs whose scans are moved, and people who are not noted."""

import contextlib
import dataclasses
import shutil

import numpy as np
import pytest

from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.release.command import release
from kst_jax.runs import checkpoints, subjects, training_files
from kst_jax.runs.checkpoints import Checkpoints
from kst_jax.training.scans import open_scans
from tests.scans import VOLUME, write_nifti, write_npy
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


@pytest.fixture
def begun(tmp_path):
    """A function that resumes a run with the scans and masks of a folder."""

    def resume(site, carries_on=True, **data):
        test, bank = (str(site / name) for name in ("sub-2.nii", "masks.npy"))
        config = with_scans(str(site / "scans"), bank, test=test, **data)
        open_scans(config, tmp_path, None, carries_on=carries_on)

    site = tmp_path / "site"
    (site / "scans").mkdir(parents=True)
    for name in ("scans/sub-1_run-1.nii", "scans/sub-1_run-2.nii", "sub-2.nii"):
        write_nifti(site / name)
    write_npy(site / "masks.npy", np.eye(32)[None])
    resume(site, carries_on=False)
    return site, resume


CHANGES = {
    "sub-1_run-2 differs": lambda site: write_nifti(
        site / "scans" / "sub-1_run-2.nii", VOLUME + 1
    ),
    "sub-1_run-1 is missing": lambda site: (
        site / "scans" / "sub-1_run-1.nii"
    ).unlink(),
    "sub-1_run-3 was added": lambda site: write_nifti(
        site / "scans" / "sub-1_run-3.nii"
    ),
    "masks.npy differs": lambda site: write_npy(
        site / "masks.npy", np.eye(32)[None, ::-1]
    ),
}


@pytest.mark.parametrize("told", CHANGES)
def test_a_run_resumes_with_the_files_it_began_with(begun, tmp_path, told):
    site, resume = begun
    moved = shutil.move(site, tmp_path / "elsewhere")
    resume(moved)
    CHANGES[told](moved)
    with pytest.raises(
        InputError, match=f"{tmp_path}: .* {told}.*Put the files back .*new --workdir"
    ):
        resume(moved)


def test_a_run_resumes_with_the_slices_it_began_with(begun):
    site, resume = begun
    with pytest.raises(InputError, match=r"scans changed .*: sub-1_run-1 differs"):
        resume(site, slices=(0.0, 0.5))


def test_a_run_without_a_record_of_files_resumes(begun, tmp_path):
    site, resume = begun
    (tmp_path / training_files.NAME).unlink()
    CHANGES["sub-1_run-2 differs"](site)
    resume(site)
    # Nobody knows whether these are the files that it began with.
    assert not (tmp_path / training_files.NAME).exists()


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"scans": [], "bank": {}}'])
def test_a_damaged_record_of_files_is_told(begun, tmp_path, text):
    site, resume = begun
    (tmp_path / training_files.NAME).write_text(text)
    with pytest.raises(InputError, match=r"training_files\.json: .* it again"):
        resume(site)


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
