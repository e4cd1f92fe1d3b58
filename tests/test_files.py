"""Files and folders that are written: what stands in the way, and is left alone."""

import os

import numpy as np
import pytest

from kst_jax.data import finding
from kst_jax.data_config import CoilsConfig
from kst_jax.errors import InputError
from kst_jax.export.command import write as write_export
from kst_jax.programs.files import (
    alone_in,
    fingerprint,
    make_folder,
    require_same_json,
    together,
    whole,
)
from kst_jax.reconstruct.methods import open_method
from kst_jax.release.command import release
from kst_jax.runs import fields_of_view, subjects
from kst_jax.runs.checkpoints import write_parameters
from kst_jax.training.loop import train
from kst_jax.training.scans import open_scans
from tests.test_sensitivities import with_data
from tests.test_training import TINY


def test_a_file_of_the_same_things_is_no_obstacle(tmp_path):
    path = tmp_path / "none" / "results.json"
    require_same_json(path, "cases", (1, 2), "other results")
    assert not path.parent.exists()
    path.parent.mkdir()
    path.write_text('{"cases": [1, 2], "device": "cpu"}')
    require_same_json(path, "cases", (1, 2), "other results")
    assert path.read_text() == '{"cases": [1, 2], "device": "cpu"}'
    with pytest.raises(InputError, match="other results"):
        require_same_json(path, "cases", (2, 1), "other results")


def test_files_of_one_size_are_told_apart_wherever_they_are(tmp_path):
    values = np.random.default_rng(0).integers(256, size=300_000, dtype=np.uint8)
    first, second = tmp_path / "first", tmp_path / "second"
    values.tofile(first)
    values.tofile(second)
    found = fingerprint([first])
    assert found["bytes"] == 300_000
    assert fingerprint([second]) == found
    # The first byte, the last one, and a twelfth of the file.
    for place in (slice(0, 1), slice(-1, None), slice(100_000, 125_000)):
        changed = values.copy()
        changed[place] += 1
        changed.tofile(second)
        other = fingerprint([second])
        assert other["bytes"] == 300_000
        assert other["sampled_sha256"] != found["sampled_sha256"]


@pytest.mark.parametrize("text", ['{"cases": [1]}', "{}", "[1, 2]", '"x"', "{", ""])
def test_a_file_of_others_or_a_damaged_one_is_left_alone(tmp_path, text):
    path = tmp_path / "results.json"
    path.write_text(text)
    with pytest.raises(InputError, match="other results"):
        require_same_json(path, "cases", (1, 2), "other results")
    assert path.read_text() == text


def test_several_hosts_may_write_one_file(tmp_path):
    path = tmp_path / "maps.h5"
    # Processes of two hosts may have one number, as these two writers have.
    with whole(path) as first, whole(path) as second:
        first.write_text("first")
        second.write_text("second")
    assert path.read_text() == "first"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("name", ["scan.h5", "scan.nii.gz", "scan.cfl"])
def test_an_unfinished_file_is_no_scan(tmp_path, name):
    (tmp_path / "other.npy").touch()
    with whole(tmp_path / name) as unfinished:
        unfinished.touch()
        for paths in (tmp_path, tmp_path / "*", tmp_path / "**"):
            found = finding.find(str(paths))
            assert [scan.path.name for scan in found] == ["other.npy"]


def test_a_set_of_files_replaces_the_one_before(tmp_path):
    def write(*names):
        with together(tmp_path, replaced=("figures/a", "figures/b")) as folder:
            for name in names:
                (folder / name).parent.mkdir(exist_ok=True)
                (folder / name).write_text("new")

    def there():
        found = (path for path in tmp_path.rglob("*") if path.is_file())
        return sorted(str(path.relative_to(tmp_path)) for path in found)

    write("figures/a", "figures/b", "report")
    (tmp_path / "figures" / "own").touch()
    write("figures/b", "report")
    assert there() == ["figures/b", "figures/own", "report"]


def test_half_a_set_of_files_has_no_report(tmp_path, monkeypatch):
    def stop(*_):
        raise KeyboardInterrupt

    def write():
        with together(tmp_path) as folder:
            (folder / "report").write_text("new")
            monkeypatch.setattr(os, "replace", stop)

    (tmp_path / "report").write_text("old")
    with pytest.raises(KeyboardInterrupt):
        write()
    assert list(tmp_path.iterdir()) == []


def test_a_folder_is_for_one_alone(tmp_path):
    # To the system another opening is what another process is.
    message = f"{tmp_path}: another process is writing here"
    with (
        alone_in(tmp_path),
        pytest.raises(InputError, match=message),
        alone_in(tmp_path),
    ):
        pass
    with alone_in(tmp_path):
        pass


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "file"
    path.write_text("something else")
    yield path
    assert path.read_text() == "something else"


def test_a_file_in_the_way_of_a_folder(file):
    params = {"weight": np.zeros(3)}
    for write in (
        lambda: train(TINY, file),
        lambda: write_parameters(file, params, TINY),
        lambda: write_export(None, file / "below"),
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
            make_folder(path)


@pytest.fixture
def home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def test_a_run_in_the_home_folder_is_released_with_its_records(home):
    write_parameters("~/run", {"weight": np.zeros(3)}, TINY, {"train": ["sub-01"]})
    fields_of_view.write("~/run", [(200.0, 180.0)])
    release("~/run", "~/out")
    assert subjects.read(home / "out", "train") == ["sub-01"]
    with pytest.raises(InputError, match="sub-01 is among the test scans"):
        subjects.require_unseen("~/out", ["sub-01"])
    method = open_method("~/out", "latest")
    assert (method.name, method.fields) == (str(home / "out"), [(200.0, 180.0)])


def test_a_run_in_the_home_folder_keeps_its_records_and_maps_there(home):
    (home / "run").mkdir()
    coils = CoilsConfig(count=2, sets=1, maps="low_resolution")
    config = with_data(slices=(0.5, 0.52), coils=coils)
    open_scans(config, "~/run", None, carries_on=False)
    assert subjects.read(home / "run", "train") == ["sub-0017"]
    assert fields_of_view.read(home / "run")
    assert len(list((home / "run" / "maps").iterdir())) == 1
