"""Whose scans files are, and what scans are called."""

import pathlib

import pytest

from kst_jax.config_dict import from_dict
from kst_jax.data import labels
from kst_jax.data.labels import Found
from kst_jax.data.sources import open_source, require_disjoint
from kst_jax.data_config import Selection
from kst_jax.errors import InputError
from kst_jax.programs.files import whole
from kst_jax.runs import subjects as run_subjects
from tests.scans import write_h5, write_nifti, write_npy

HCP = [f"{n}/T1w/T1w_acpc.nii.gz" for n in (900001, 900002, 900003)]
IXI = ["IXI002-Guys-0828-T1.nii.gz", "IXI002-Guys-0828-T2.nii.gz"]


def below(root, paths):
    root = pathlib.Path(root)
    return [Found(root / path, root) for path in paths]


def people(root, paths, pattern="", patients=None):
    found = below(root, paths)
    return labels.subjects(found, patients or [""] * len(found), pattern)


def names(paths):
    return labels.file_names([pathlib.Path("/data") / path for path in paths])


# --- whose scans ---


@pytest.mark.parametrize(
    ("path", "subject"),
    [
        ("disc1/OAS1_0001_MR1/RAW/OAS1_0001_MR1_mpr-1_anon.hdr", "OAS1_0001"),
        ("OAS2_0012_MR2/mpr-1.nii.gz", "OAS2_0012"),
        ("OAS30001_MR_d0129/anat2/sub-OAS30001_ses-d0129_T1w.nii.gz", "OAS30001"),
        ("bids/sub-01/ses-2/anat/sub-01_ses-2_T1w.nii.gz", "sub-01"),
        ("bids/sub-01/T1w.nii", "sub-01"),
        ("bids/sub-01_visit2/T1w.nii", "sub-01"),
        ("bids/sub-pilot/T1w.nii", "sub-pilot"),
        ("study/aomic_sub-0017_t1w.nii.gz", "sub-0017"),
        ("study/Patient.3.nii.gz", "Patient.3"),
        ("study/unsub-scribed.nii", "unsub-scribed"),
        ("sub-cortical_study/A001.nii.gz", "A001"),
        ("kspace.npy", "kspace"),
        ("file1000001.h5", "file1000001"),
    ],
)
def test_a_label_or_else_the_stem(path, subject):
    assert people("/data", [path])[0] == [subject]


def test_folders_above_what_was_named_are_no_labels():
    scans = [f"A00{n}.nii.gz" for n in range(1, 5)]
    found, remarks = people("/data/sub-cortical_study", scans)
    assert found == ["A001", "A002", "A003", "A004"]
    assert not remarks
    assert people("/data/sub-cortical", scans)[0] == found


@pytest.mark.parametrize("root", ["/bids/sub-01", "/bids/sub-01/anat"])
def test_a_persons_own_folder_may_be_named(root):
    """Or a person who was trained on would be tested under another label."""
    assert people(root, ["T1w.nii.gz"])[0] == ["sub-01"]


def test_the_folder_that_differs_where_names_repeat():
    more = "900001/T1w/T2w_acpc.nii.gz"
    found, remarks = people("/hcp", [*HCP, more])
    assert found == ["900001", "900002", "900003", "900001"]
    (remark,) = remarks
    assert remark.level == "note"
    assert "each folder counts as a person: 900001, 900002, 900003" in remark.text


def test_people_whose_folders_are_named_one_by_one():
    found = [Found(f.path, f.path.parent) for f in below("/hcp", HCP)]
    assert labels.subjects(found, [""] * 3)[0] == ["900001", "900002", "900003"]


@pytest.mark.parametrize(
    "paths",
    [
        [f"{kind}/{n:03}.nii" for kind in ("T1", "T2") for n in range(3)],
        [*HCP[:2], "900001/T1w/T2w_acpc.nii.gz"],
    ],
)
def test_a_folder_is_not_taken_for_a_person_where_a_name_may_be(paths):
    with pytest.raises(InputError, match=r"nothing tells.*data\.subjects"):
        people("/data", paths)
    found, _ = people("/data", paths, r"([^/]+)\.nii")
    assert len(set(found)) == len({pathlib.Path(path).name for path in paths})


@pytest.mark.parametrize(
    ("paths", "alike"),
    [
        (IXI, True),
        (["p1/T1_a.nii", "p1/T1_b.nii"], True),
        (["BraTS_001_flair.nii", "BraTS_001_t1.nii", "BraTS_002_t1.nii"], True),
        (["p1_1.nii", "p1_2.nii", "p2_1.nii", "p2_2.nii"], True),
        (["scan_1.nii", "scan_2.nii", "scan_10.nii"], False),
        (["a_001.nii", "a_002.nii", "b_001.nii", "b_002.nii"], False),
        (["colin27_t1w.nii", "s1_t1w.nii"], False),
        (["file1000001.h5", "file1000002.h5"], False),
        (["sub-01_T1w.nii", "sub-01_T2w.nii"], False),
    ],
)
def test_stems_that_are_alike_get_a_warning(paths, alike):
    _, remarks = people("/data", paths)
    assert [remark.level for remark in remarks] == ["warning"] * alike


def test_the_remedy_that_a_warning_names_works():
    (remark,) = people("/data", IXI)[1]
    assert "IXI002-Guys-0828-T1 and IXI002-Guys-0828-T2 count as two" in remark.text
    assert "'([^/]+)/'" in people("/data", ["p1/T1_a.nii", "p1/T1_b.nii"])[1][0].text
    pattern = remark.text.split("'")[1]
    found, remarks = people("/data", [*IXI, "IXI012-HH-1211-T1.nii.gz"], pattern)
    assert found == ["IXI002-Guys-0828"] * 2 + ["IXI012-HH-1211"]
    assert not remarks


def test_the_users_pattern_comes_first():
    paths = ["sub-01/anat/sub-01_T1w.nii", "scan7.h5", HCP[0]]
    found, _ = people("/data", paths, "([0-9]+)", ["", "patient", ""])
    assert found == ["01", "7", "900001"]
    assert people("/data", paths, patients=["x", "y", "z"])[0] == ["x", "y", "z"]


def test_the_pattern_is_searched_below_what_was_named_first():
    assert people("/20261128/hcp", HCP, "([0-9]{6})")[0][0] == "900001"
    assert people("/hcp/900001/T1w", ["T1w_acpc.nii"], "([0-9]{6})")[0] == ["900001"]


@pytest.mark.parametrize("pattern", ["(IXI[0-9]+)", "T1w(x?)"])
def test_a_pattern_that_gives_no_label(pattern):
    with pytest.raises(InputError, match=r"T1w_acpc.*data\.subjects=.*not match"):
        people("/data", HCP, pattern)


@pytest.mark.parametrize("pattern", ["sub-01", "(", "(a)|(b)"])
def test_what_is_no_pattern(pattern):
    with pytest.raises(InputError, match=r"config\.data\.subjects.*one group"):
        from_dict({"data": {"subjects": pattern}})


def test_two_data_sets_with_the_same_labels():
    paths = ["sub-01/anat/sub-01_T1w.nii", "sub-02/anat/sub-02_T1w.nii"]
    found = below("/d/one", paths) + below("/d/two", paths)
    merged, (remark,) = labels.subjects(found, [""] * 4)
    assert merged == ["sub-01", "sub-02"] * 2
    assert remark.level == "note"
    assert "sub-01 is in /d/one and in /d/two and counts as one person" in remark.text
    pattern = remark.text.split("'")[1]
    apart, _ = labels.subjects(found, [""] * 4, pattern)
    assert apart == ["one/sub-01", "one/sub-02", "two/sub-01", "two/sub-02"]
    assert people("/d", ["one/" + paths[0]], pattern)[0] == ["one/sub-01"]


# --- names of results ---


def test_names_stay_where_they_do_not_meet():
    paths = ["a/x.nii.gz", "b/y.h5", "z.npy"]
    assert names(paths) == ["x.nii.gz", "y.h5", "z.npy"]


def test_names_that_meet_get_the_folders_that_differ():
    assert names([*HCP, "x.nii"]) == [
        "900001_T1w_acpc.nii.gz",
        "900002_T1w_acpc.nii.gz",
        "900003_T1w_acpc.nii.gz",
        "x.nii",
    ]
    assert names(["c.npy", "b/c.h5"]) == ["c.npy", "b_c.h5"]
    assert names(["a/1/x.h5", "b/2/x.h5"]) == ["a_1_x.h5", "b_2_x.h5"]


def test_made_names_that_meet_others_are_told_apart():
    paths = ["a_b/c.h5", "a/b/c.h5", "x/b_c.h5", "c.h5", "b/c.h5"]
    found = names(paths)
    assert len({name.removesuffix(".h5") for name in found}) == 5
    assert found[2] == "b_c.h5"
    moved = [pathlib.Path("/elsewhere") / path for path in paths]
    assert labels.file_names(moved) == found


def test_two_files_of_one_folder_that_differ_in_their_suffix():
    with pytest.raises(InputError, match=r"a\.nii and .*a\.nii\.gz: both"):
        names(["x/a.nii.gz", "x/a.nii"])


@pytest.mark.parametrize("stem", ["頭" * 80, "x" * 250, "scan", "K\udcf6rper" * 30])
def test_results_can_be_written_under_every_name_of_a_file(tmp_path, stem):
    name = labels.result_name(f"{stem}.nii")
    with whole(tmp_path / f"{name}.h5") as path:
        path.write_text("results")
    assert (name == stem) == (len(stem) < 10)
    assert name.startswith(stem[0])
    assert name != labels.result_name(f"{stem}2.nii")


# --- together, in a source ---


def test_scans_of_the_same_name_are_used_together(tmp_path, capsys):
    for path in HCP:
        (tmp_path / path).parent.mkdir(parents=True)
        write_nifti(tmp_path / path)
    source = open_source(str(tmp_path))
    assert source.subjects == ("900001", "900002", "900003")
    assert source.volumes == tuple(f"{s}_T1w_acpc" for s in source.subjects)
    assert source.describe(0).file == "900001_T1w_acpc.nii.gz"
    assert "note: files in several folders" in capsys.readouterr().err
    pattern = Selection(subjects="/(T1w)/")
    assert open_source(str(tmp_path), pattern).subjects == ("T1w",)
    assert capsys.readouterr().err == ""


def test_one_of_many_folders_is_still_known(tmp_path, capsys):
    """Alone, a scan has no other of its name, and so its folder is no label."""
    for path in HCP:
        (tmp_path / path).parent.mkdir(parents=True)
        write_nifti(tmp_path / path)
    everyone, one = open_source(str(tmp_path)), open_source(f"{tmp_path}/900002")
    assert one.subjects == ("T1w_acpc",)
    with pytest.raises(InputError, match=r"T1w_acpc\.nii\.gz is in the training and"):
        require_disjoint(everyone, one)
    run_subjects.write(tmp_path, {"train": ["900001", "900002"]})
    capsys.readouterr()
    run_subjects.require_unseen(tmp_path, one.subjects, one.unlabelled_folders)
    assert "scans is called 900002, and the model" in capsys.readouterr().err
    pattern = Selection(subjects="([0-9]{6})")
    with pytest.raises(InputError, match="900002 is among the test scans"):
        run_subjects.require_unseen(
            tmp_path, open_source(f"{tmp_path}/900002", pattern).subjects
        )


def test_draws_and_masks_go_by_the_whole_name_of_a_file(tmp_path):
    long = "x" * 200
    write_npy(tmp_path / f"{long}.npy")
    about = open_source(str(tmp_path)).describe(0)
    assert about.file == f"{long}.npy"
    assert len(about.volume) < 130


def test_patients_of_fastmri_files(tmp_path):
    for name, patient in (("a", "p7"), ("b", ""), ("c", "p7")):
        write_h5(tmp_path / f"{name}.h5", patient_id=patient)
    assert open_source(str(tmp_path)).subjects == ("b", "p7")
    pattern = Selection(subjects=r"(\w)\.h5")
    assert open_source(str(tmp_path), pattern).subjects == ("a", "b", "c")
