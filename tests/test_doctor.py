"""The doctor: scans together, its command, and that runs take what it passes."""

import collections
import dataclasses
import json
import os
import tracemalloc

import h5py
import nibabel as nib
import numpy as np
import pytest

from kst_jax.config import Config
from kst_jax.data import opening, pipeline, sources
from kst_jax.data.readers.npy import NpyVolume
from kst_jax.data_config import DataConfig, Selection
from kst_jax.doctor.command import examinations, report
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.models.config import KSTConfig
from tests import fastmri_files
from tests.programs import run_apart, run_here
from tests.scans import write_h5, write_nifti, write_npy
from tests.test_examination import DATA, KSPACE, VOLUME, blank
from tests.test_nifti import BAD_NIFTI
from tests.test_readers import BAD_H5, BAD_NPY, write_chunked


def test_what_has_the_name_of_a_scan_and_is_no_file(tmp_path):
    os.mkfifo(tmp_path / "pipe.h5")
    (tmp_path / "broken.nii").symlink_to("nowhere")
    (tmp_path / "loop.nii.gz").symlink_to("loop.nii.gz")
    (tmp_path / "lonely.img").write_bytes(b"data")
    write_h5(tmp_path / "whole.h5", KSPACE)
    examined = list(examinations(str(tmp_path), DATA, Selection()))
    told = {each.path.name: [f.what for f in each.findings] for each in examined}
    assert told.pop("whole.h5") == []
    for name, what in (
        ("pipe.h5", "a pipe"),
        ("broken.nii", "leads nowhere"),
        ("loop.nii.gz", "leads nowhere"),
        ("lonely.hdr", "missing, though its .img is there"),
    ):
        assert what in told.pop(name)[0]
        with pytest.raises(InputError, match=rf"{name}: is .*{what}"):
            sources.open_source(f"{tmp_path}/{name[:-3]}*")
    assert not told


def test_a_large_folder_takes_no_more_memory_than_a_file(tmp_path):
    paths = [tmp_path / f"{number:02}.npy" for number in range(12)]
    for path in paths:
        write_npy(path, np.tile(KSPACE, (1, 10, 10)))

    def peak(folder):
        tracemalloc.start()
        for _ in examinations(str(folder), DATA, Selection()):
            pass
        found = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return found

    peak(paths[0])  # what is imported and cached on the way
    assert peak(tmp_path) < 1.2 * peak(paths[0])


# --- it and the loaders agree ---


def taken(path, data):
    """Whether a run takes a path, all the way to its batches."""
    config = Config(
        data=dataclasses.replace(data, test=str(path), workers=0),
        model=KSTConfig(lr_size=(8, 8)),
    )
    try:
        source = opening.open_test_source(config)
        batches = pipeline.evaluation_batches(
            source, config, opening.open_sampler(config)
        )
        return sum(len(batch.number) for batch in batches) > 0
    except InputError:
        return False


def passed(path, data):
    try:
        found = examinations(str(path), data, Selection())
        return not any(f.level == "error" for e in found for f in e.findings)
    except InputError:
        return False


GOOD = {
    "complex.h5": lambda p: write_h5(p, KSPACE),
    "double.h5": lambda p: write_h5(p, KSPACE.astype("c16")),
    "packed.h5": lambda p: write_chunked(
        p, KSPACE, chunks=(2, 7, 18), compression="gzip", shuffle=True
    ),
    "large_unit.h5": lambda p: write_h5(p, KSPACE * np.float32(1e36)),
    "off_centre.h5": lambda p: write_h5(p, np.fft.fftshift(KSPACE)),
    "pairs.npy": lambda p: write_npy(p, np.stack([KSPACE.real, KSPACE.imag], -1)),
    "complex.npy": lambda p: write_npy(p, KSPACE),
    "a.nii": lambda p: write_nifti(p, VOLUME),
    "a.nii.gz": lambda p: write_nifti(p, VOLUME),
    "small_unit.nii": lambda p: write_nifti(p, VOLUME * np.float32(1e-22)),
    "negative.nii": lambda p: write_nifti(p, VOLUME - 3),
    "analyze.hdr": lambda p: nib.save(nib.AnalyzeImage(VOLUME, None), p),
}
BAD = {
    "small.npy": lambda p: write_npy(p, KSPACE[:, :15]),
    "blank.h5": lambda p: write_h5(p, blank(3)),
    **{f"{n}.h5": write for n, write in enumerate(BAD_H5.values())},
    **{f"{n}.nii": write for n, write in enumerate(BAD_NIFTI.values())},
    **{f"{n}.npy": write for n, write in enumerate(BAD_NPY.values())},
}


@pytest.mark.parametrize("by", ["measured", "target"])
@pytest.mark.parametrize("name", GOOD)
def test_what_passes_is_taken(tmp_path, name, by):
    GOOD[name](tmp_path / name)
    data = dataclasses.replace(DATA, normalise=by)
    assert passed(tmp_path / name, data)
    assert taken(tmp_path / name, data)


@pytest.mark.parametrize("name", BAD)
def test_what_does_not_pass_is_refused(tmp_path, name):
    BAD[name](tmp_path / name)
    assert not passed(tmp_path / name, DATA)
    assert not taken(tmp_path / name, DATA)


@pytest.mark.parametrize("name", ["complex.h5", "pairs.npy", "a.nii", "a.nii.gz"])
def test_it_agrees_with_loaders_on_random_damage(tmp_path, name):
    GOOD[name](tmp_path / name)
    intact = (tmp_path / name).read_bytes()
    rng = np.random.default_rng(3)
    verdicts = []
    for trial in range(40):
        data = bytearray(intact)
        for place in rng.integers(min(len(data), 700), size=trial % 4):
            data[place] ^= 1 << rng.integers(8)
        if trial % 4 == 0:
            del data[rng.integers(len(data)) :]
        (tmp_path / name).write_bytes(data)
        verdicts.append(passed(tmp_path / name, DATA))
        assert verdicts[-1] == taken(tmp_path / name, DATA), trial
    if name.endswith(".gz"):  # its checksum reveals nearly all
        assert sum(verdicts) < 4
    else:
        assert 4 < sum(verdicts) < 36


def test_slices_whose_reasons_are_too_many_are_counted_all_the_same(
    tmp_path, monkeypatch
):
    def read(volume, index):
        reason = f"reason {index}" if index < 9 else "a reason of several"
        raise InputError(f"{volume.path}: slice {index}: {reason}")

    write_npy(tmp_path / "a.npy", np.tile(KSPACE, (2, 1, 1)))
    monkeypatch.setattr(NpyVolume, "read", read)
    (found,) = examinations(str(tmp_path), DATA, Selection())
    *shown, rest = (f.what for f in found.findings)
    assert [what[:8] for what in shown] == [f"slice {n}:" for n in range(8)]
    assert rest == "4 slices (8, 9, 10, 11): cannot be used for other reasons."


def test_two_scans_of_one_name(tmp_path):
    write_h5(tmp_path / "a.h5", KSPACE)
    write_npy(tmp_path / "a.npy", KSPACE)
    assert not passed(tmp_path, DATA)
    assert not taken(tmp_path, DATA)


# --- people ---


def remarks(path, **options):
    found = examinations(str(path), DATA, Selection(**options))
    return [(f.level, f.what) for each in found for f in each.findings]


def test_scans_that_may_be_one_persons(tmp_path):
    for name in ("IXI002-Guys-0828-T1.npy", "IXI002-Guys-0828-T2.npy"):
        write_npy(tmp_path / name, KSPACE)
    ((level, what),) = remarks(tmp_path)
    assert level == "warning"
    assert what.startswith("IXI002-Guys-0828-T1 and IXI002-Guys-0828-T2 count as two")
    assert not remarks(tmp_path, subjects="(IXI[0-9]+)")
    ((level, what),) = remarks(tmp_path, subjects="(sub-[0-9]+)")
    assert level == "error"
    assert "data.subjects='(sub-[0-9]+)' does not match" in what


def test_people_are_those_of_a_run(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    write_h5(tmp_path / "a" / "scan.h5", KSPACE, patient_id="p7")
    write_npy(tmp_path / "b" / "scan.npy", KSPACE)
    write_npy(tmp_path / "b" / "sub-2.npy", KSPACE)
    for pattern in ("", "/(.)/"):
        found = examinations(str(tmp_path), DATA, Selection(subjects=pattern))
        people = {each.subject for each in found} - {None}
        source = sources.open_source(str(tmp_path), Selection(subjects=pattern))
        assert people == set(source.subjects)
    assert people == {"a", "b"}


# --- the command line ---


def run(*args):
    return run_here("kst-doctor", *args)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("scans")
    write_h5(folder / "a.h5", KSPACE)
    write_nifti(folder / "b.nii.gz", VOLUME)
    return folder


def test_a_healthy_folder(folder):
    done = run(folder, "--size", 16, 16)
    assert (done.returncode, done.stderr) == (0, "")
    header, first, second, total, note = done.stdout.splitlines()
    assert header.split()[-1] == "file"
    assert first.split()[:3] == ["HDF5", "6x20x18", "complex64"]
    assert "measured" in first
    assert "simulated" in second
    assert total == "2 scans of 2 people opened; 0 errors, 0 warnings"
    assert "slices of 2 sizes: 20x18 in 1, 18x20 in 1" in note


def test_a_name_that_is_no_text(tmp_path):
    try:
        write_npy(os.fsdecode(os.fsencode(tmp_path) + b"/K\xf6rper.npy"), KSPACE)
    except OSError:
        pytest.skip("this file system has no such names")
    for json_or_not in ((), ("--json",)):
        done = run_apart(
            "-m", "kst_jax.doctor", "--size", 16, 16, tmp_path, *json_or_not
        )
        assert done.returncode == 0, done.stderr
    assert "K" in done.stdout


def test_json_has_a_line_for_each_file(folder):
    done = run(folder, "--size", 16, 19, "--json")
    assert done.returncode == 1
    *files, total = map(json.loads, done.stdout.splitlines())
    assert [f["path"] for f in files] == [f"{folder}/a.h5", f"{folder}/b.nii.gz"]
    assert files[1]["sizes"] == [[18, 20]]
    assert files[0]["findings"][0]["level"] == "error"
    assert total["summary"]["errors"] == 1
    assert total["summary"]["sizes"] == [[20, 18, 1], [18, 20, 1]]


MATRIX = (16, 14)


@pytest.fixture(scope="module")
def native_scans(tmp_path_factory):
    """Scans with an oversampled readout, 20 and 22 columns, one with padding."""
    folder = tmp_path_factory.mktemp("native")
    images = fastmri_files.slices_of("demo:test", MATRIX, (0.4, 0.5))
    for number, (width, columns, count) in enumerate(
        [(22, (2, 21), 5), (20, None, 3), (20, None, 4)]
    ):
        kspace = fastmri_files.measured(images[:count], width, columns, seed=number)
        fastmri_files.write(folder / f"{number}.h5", kspace, MATRIX, columns)
    return folder


def batches_of(folder):
    """Slices by size and field in the batches of a native run."""
    config = Config(
        data=DataConfig(test=str(folder), native=True, size=MATRIX, workers=0),
        mask=MaskConfig(kind="fastmri_random", acceleration=2.0, center_fraction=0.1),
        model=KSTConfig(lr_size=(8, 8)),
    )
    source = opening.open_test_source(config)
    batches = pipeline.evaluation_batches(source, config, opening.open_sampler(config))
    found = collections.Counter()
    for each in batches:
        found[each.batch.grid, each.batch.field] += int((each.number >= 0).sum())
    return found


def test_native_groups_are_those_of_a_run(native_scans):
    done = run(native_scans, "--native", "--json")
    assert done.returncode == 0, done.stderr
    *files, total = map(json.loads, done.stdout.splitlines())
    assert [f["sizes"] for f in files] == [[[16, 22]], [[16, 20]], [[16, 20]]]
    assert files[0]["grid"] == [[16, 22], [16, 14]]
    groups = total["summary"]["groups"]
    assert [group["scans"] for group in groups] == [2, 1]
    assert batches_of(native_scans) == {
        (tuple(group["shape"]), tuple(group["field"])): group["slices"]
        for group in groups
    }


def test_native_groups_are_shown(native_scans):
    done = run(native_scans, "--native")
    assert done.returncode == 0, done.stderr
    *_, note, first, second = done.stdout.splitlines()
    assert "batches of a native run" in note
    assert first.strip() == ("16x20, scored in the middle 16x14: 7 slices of 2 scans")
    assert "16x22" in second
    assert "16x22" not in run(native_scans, "--size", 16, 16).stdout


def test_a_header_that_native_runs_refuse(native_scans, tmp_path):
    with h5py.File(native_scans / "1.h5") as file:
        kspace = file["kspace"][()]
    fastmri_files.write(tmp_path / "a.h5", kspace, MATRIX)
    with h5py.File(tmp_path / "a.h5", "a") as file:
        del file["ismrmrd_header"]
        file["ismrmrd_header"] = fastmri_files.header((32, 20), MATRIX, (3, 20))
    assert run(tmp_path, "--size", 16, 16).returncode == 0
    done = run(tmp_path, "--native")
    assert done.returncode == 1
    assert "k-space is not zero in columns that the header calls" in done.stdout
    with pytest.raises(InputError, match="not zero in columns"):
        batches_of(tmp_path)


def test_a_folder_of_dicom_files(tmp_path):
    for number in range(3):
        (tmp_path / f"IM{number}").write_bytes(bytes(128) + b"DICM" + bytes(300))
    done = run(tmp_path, "--size", 16, 16)
    assert done.returncode == 1
    assert "no scan found" in done.stdout
    assert "so are 2 more of its folder. Convert the series to NIfTI" in done.stdout


def test_warnings_alone_exit_with_1(tmp_path):
    write_npy(tmp_path / "a.npy", np.fft.ifftshift(KSPACE, (1, 2)))
    done = run(tmp_path, "--size", 16, 16)
    assert done.returncode == 1
    total = done.stdout.splitlines()[-1]
    assert total == "1 scans of 1 people opened; 0 errors, 1 warnings"


@pytest.mark.parametrize(
    ("args", "cause"),
    [
        ((), "required: PATH"),
        (("/nowhere",), "/nowhere: no such file"),
        (("{empty}",), "no scan found"),
        (("{folder}", "--size", "4", "4"), "data.size"),
        (("{folder}", "--plane", "axila"), "axila"),
        (("{folder}", "--native", "--pad"), "data.pad"),
    ],
)
def test_mistakes_exit_with_2(folder, tmp_path, args, cause):
    done = run(*(a.format(empty=tmp_path, folder=folder) for a in args))
    assert done.returncode == 2
    assert cause in done.stderr


def test_the_table_has_no_missing_values_as_none(folder, tmp_path, capsys):
    (tmp_path / "a.h5").write_text("<html>")
    summary = report(examinations(f"{folder},{tmp_path}", DATA, Selection()))
    assert (summary.errors, summary.warnings) == (2, 0)
    assert "None" not in capsys.readouterr().out
