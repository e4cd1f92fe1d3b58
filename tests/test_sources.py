"""Finding files, choosing slices, people."""

import concurrent.futures
import multiprocessing
import operator
import os
import pickle

import nibabel as nib
import numpy as np
import pytest

from kst_jax.data import finding, volumes
from kst_jax.data.sources import (
    open_source,
    require_disjoint,
    split_subjects,
)
from kst_jax.data_config import Selection
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.runs import subjects
from kst_jax.sampling import sampler
from tests.scans import (
    read_all,
    write_h5,
    write_nifti,
    write_npy,
)

# --- finding files and choosing slices ---


@pytest.fixture
def folder(tmp_path):
    for name in ("b/c.h5", "a.h5", "b/._a.h5", ".git/x.h5"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        write_h5(tmp_path / name)
    write_nifti(tmp_path / "b/sub-1_T1w.nii.gz")
    write_npy(tmp_path / "d.npy")
    (tmp_path / "notes.txt").write_text("not a scan")
    (tmp_path / "folder.h5").mkdir()
    return tmp_path


def test_a_folder_is_searched_with_its_subfolders(folder):
    source = open_source(str(folder))
    assert source.volumes == ("a", "c", "sub-1_T1w", "d")
    assert source.subjects == ("a", "c", "d", "sub-1")
    assert len(source) == 4 + 4 + 7 + 4
    assert not source.measured
    assert "slices: 19, volumes: 4, people: 4" in str(source)
    with pytest.raises(IndexError):
        source[19]


def test_files_patterns_and_lists(folder):
    source = open_source(f"{folder}/d.npy, {folder}/**/*.h5,{folder}/a.h5,")
    assert source.volumes == ("d", "a", "c")
    assert open_source(f"{folder}/a.h5").measured


@pytest.mark.parametrize(
    ("paths", "cause"),
    [
        ("", "no path"),
        ("nowhere", "no such file or folder"),
        ("*.mat", "no such file or folder"),
        ("notes.txt", "no scan found. Looked for .h5, .mrd, .cfl, .npy, .nii, .nii.gz"),
        ("folder.h5", "no scan found.*subfolders"),
    ],
)
def test_nothing_found(folder, monkeypatch, paths, cause):
    monkeypatch.chdir(folder)
    with pytest.raises(InputError, match=cause):
        open_source(paths)


def test_a_name_that_is_no_text(tmp_path):
    """As an old archive leaves it: Latin-1 where UTF-8 is the rule."""
    path = os.fsencode(tmp_path) + b"/M\xfcller.npy"
    try:
        write_npy(os.fsdecode(path))
    except OSError:
        pytest.skip("this file system has no such names")
    source = open_source(str(tmp_path), Selection(fraction=0.5))
    assert len(source) == 2
    mask = sampler(MaskConfig(), (8, 8)).fixed(source.describe(0).file, 0, seed=0)
    assert mask.sum() == 12
    subjects.write(tmp_path, {"train": source.subjects}, carries_on=False)
    with pytest.raises(InputError, match="trained"):
        subjects.require_unseen(tmp_path, source.subjects)


def test_two_forms_of_one_scan(folder):
    write_npy(folder / "b/c.npy")
    with pytest.raises(InputError, match=r"c\.npy and .*c\.h5"):
        open_source(str(folder))


def test_names_that_meet_are_told_apart_by_folders(folder):
    write_npy(folder / "c.npy")
    source = open_source(str(folder))
    assert source.volumes == ("a", "b_c", "sub-1_T1w", "c", "d")
    assert source.subjects == ("a", "c", "d", "sub-1")


def found_in(*paths):
    found = finding.find(",".join(map(str, paths)))
    return [str(scan.below) for scan in found]


@pytest.fixture
def linked(tmp_path):
    """A data set whose subjects are links to folders elsewhere, as datalad makes."""
    store = tmp_path / "store"
    for name in ("bids/sub-09", "store/1", "store/2"):
        (tmp_path / name).mkdir(parents=True)
        write_npy(tmp_path / name / "T1w.npy")
    for n in (1, 2):
        (tmp_path / "bids" / f"sub-0{n}").symlink_to(store / str(n))
    return tmp_path / "bids"


@pytest.mark.parametrize("pattern", ["", "**", "**/*.npy", "**/T1w.*", "sub-*/*.npy"])
def test_links_to_folders_are_followed(linked, pattern):
    paths = ["sub-01/T1w.npy", "sub-02/T1w.npy", "sub-09/T1w.npy"]
    assert found_in(linked / pattern) == paths
    source = open_source(str(linked / pattern))
    assert source.subjects == ("sub-01", "sub-02", "sub-09")
    assert source.volumes == ("sub-01_T1w", "sub-02_T1w", "sub-09_T1w")


def test_loops_of_links_end_and_no_scan_is_found_twice(linked):
    (linked / "sub-09" / "self").symlink_to(linked / "sub-09")
    (linked / "sub-09" / "top").symlink_to(linked)
    (linked / "above").symlink_to(linked.parent)  # would bring in what is beside it
    (linked / "again").symlink_to(linked / "sub-09")
    (linked.parent / "store" / "1" / "other").symlink_to(linked.parent / "store" / "2")
    paths = ["sub-01/T1w.npy", "sub-02/T1w.npy", "sub-09/T1w.npy"]
    assert found_in(linked) == paths
    assert found_in(linked / "**") == paths
    assert found_in(linked, linked / "sub-09", linked / "again") == paths


def test_a_folder_that_cannot_be_searched(folder):
    (folder / "b").chmod(0)
    try:
        if os.access(folder / "b", os.R_OK):
            pytest.skip("needs a user whom permissions bind")
        with pytest.raises(InputError, match="b: cannot be searched"):
            open_source(str(folder))
    finally:
        (folder / "b").chmod(0o700)


def test_a_comma_in_a_name(tmp_path):
    (tmp_path / "a,b").mkdir()
    write_npy(tmp_path / "a,b" / "x.npy")
    with pytest.raises(InputError, match=r"Commas separate paths.*'/data/a\?b/\*\*'"):
        open_source(f"{tmp_path}/a,b")
    assert open_source(f"{tmp_path}/a?b/**").volumes == ("x",)


def test_range_and_dropped_slices(tmp_path):
    write_npy(tmp_path / "a.npy", np.ones((20, 3, 3), "c8"))

    def indices(**options):
        return [
            index
            for _, index in open_source(str(tmp_path), Selection(**options)).entries
        ]

    assert indices(slices=(0.25, 0.75)) == list(range(5, 15))
    assert indices(drop_first=5) == list(range(5, 20))
    assert indices(drop_first=8, slices=(0.25, 0.5)) == [8, 9]
    with pytest.raises(InputError, match=r"a\.npy: none of its 20 slices"):
        indices(drop_first=20)


def test_fraction_draws_each_volume_for_itself(tmp_path):
    for name in "abc":
        write_npy(tmp_path / f"{name}.npy", np.ones((40, 3, 3), "c8"))

    def drawn(paths, fraction, seed=0):
        source = open_source(str(paths), Selection(fraction=fraction, seed=seed))
        return [(scan.name, index) for scan, index in source.entries]

    together = drawn(tmp_path, 0.25)
    assert len(together) == 30
    assert together == sorted(together)
    assert together == [e for n in "abc" for e in drawn(tmp_path / f"{n}.npy", 0.25)]
    by_name = [{index for n, index in together if n == name} for name in "abc"]
    assert by_name[0] != by_name[1] != by_name[2]
    assert together != drawn(tmp_path, 0.25, seed=1)
    assert len(drawn(tmp_path, 0.001)) == 3


@pytest.mark.parametrize(
    "option",
    [
        {"plane": "axila"},
        {"slices": (0.5, 0.5)},
        {"slices": (0, 175)},
        {"drop_first": -1},
        {"fraction": 0.0},
        {"fraction": float("nan")},
    ],
)
def test_options_out_of_range(option):
    with pytest.raises(InputError, match=next(iter(option))):
        open_source("demo:train", Selection(**option))


# --- subjects ---


def test_split_is_by_subject_and_depends_on_names_and_seed_alone():
    people = [f"sub-{i:02}" for i in range(20)]
    train, test = split_subjects(people, 0.75, seed=3)
    assert (len(train), len(test)) == (15, 5)
    assert sorted(train + test) == people
    assert split_subjects(people[::-1] + people, 0.75, seed=3) == (train, test)
    assert split_subjects(people, 0.75, seed=4) != (train, test)
    for fraction in (0.01, 0.99):
        assert all(split_subjects(people[:2], fraction, seed=0))


@pytest.mark.parametrize(
    ("people", "fraction"), [([], 0.5), (["a", "a"], 0.5), (["a", "b"], 1.0)]
)
def test_impossible_split(people, fraction):
    with pytest.raises(InputError, match="split"):
        split_subjects(people, fraction, seed=0)


def test_scans_of_one_person_stay_together(tmp_path):
    for i, patient in enumerate("xyxz"):
        write_h5(tmp_path / f"{i}.h5", patient_id=patient)
    source = open_source(str(tmp_path))
    train, test = map(source.select, split_subjects(source.subjects, 0.7, seed=0))
    require_disjoint(train, test)
    assert len(train) + len(test) == len(source)
    assert source.select(["x"]).volumes == ("0", "2")
    with pytest.raises(
        InputError, match="subject x is in the training and in the test"
    ):
        require_disjoint(source.select(["x", "y"]), source.select({"z", "x"}))
    with pytest.raises(InputError, match=r"subject w .* x, y, z"):
        source.select(["w"])


# --- processes, the demo, damage ---


def test_other_processes_read_a_pickled_source_without_jax(folder):
    source = open_source(str(folder))
    assert pickle.loads(pickle.dumps(source)) == source
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as worker:
        for index in (0, 9, -1):
            there = worker.submit(operator.getitem, source, index).result()
            np.testing.assert_array_equal(there.image, source[index].image)
        modules = worker.submit(eval, "set(__import__('sys').modules)").result()
    assert "kst_jax.data.sources" in modules
    assert "jax" not in modules


def test_demo():
    train, test = open_source("demo:train"), open_source("demo:test")
    require_disjoint(train, test)
    assert (train.subjects, test.subjects) == (("sub-0017",), ("sub-0042",))
    assert not train.measured
    for source, shape in ((train, (158, 133)), (test, (176, 146))):
        assert len(source) == 48
        assert source[0].image.shape == shape
    for path in finding.DEMO_FOLDER.glob("*.nii.gz"):
        assert path.stat().st_size < 1.1e6
        assert nib.aff2axcodes(nib.load(path).affine) == ("R", "A", "S")


@pytest.mark.parametrize("name", ["a.h5", "d.npy"])
def test_a_file_that_changes_under_an_open_source(folder, name):
    source = open_source(f"{folder}/{name}")
    (folder / name).write_bytes((folder / name).read_bytes()[:-100])
    with pytest.raises(InputError, match=name):
        source[0]


@pytest.mark.parametrize("names", [("a.hdr", "a.IMG"), ("a.cfl", "a.hdr")])
def test_both_files_of_a_pair_tell_a_scan_from_others(tmp_path, names):
    first, second = (tmp_path / name for name in names)
    first.write_bytes(bytes(5))
    second.write_bytes(bytes(7))
    found = volumes.fingerprint(first)
    assert found["bytes"] == 12
    for changed in (first, second):
        before = changed.read_bytes()
        changed.write_bytes(before[:-1] + b"x")
        assert volumes.fingerprint(first) != found
        changed.write_bytes(before)
    assert volumes.fingerprint(first) == found


@pytest.mark.parametrize("suffix", [".h5", ".nii", ".nii.gz", ".npy"])
def test_damaged_files_read_or_fail_clearly(tmp_path, suffix):
    write = {".h5": write_h5, ".npy": write_npy}.get(suffix, write_nifti)
    path = tmp_path / f"scan{suffix}"
    write(path)
    intact = path.read_bytes()
    rng = np.random.default_rng(1)
    failures = 0
    for trial in range(120):
        path = tmp_path / f"{trial}{suffix}"
        data = bytearray(intact)
        if trial % 3 == 0:
            del data[rng.integers(len(data)) :]
        else:
            for place in rng.integers(min(len(data), 600), size=trial % 3):
                data[place] ^= 1 << rng.integers(8)
        path.write_bytes(data)
        try:
            read_all(path)
        except InputError as error:
            assert str(path) in str(error)  # noqa: PT017
            failures += 1
    assert failures >= 40
