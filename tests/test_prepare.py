"""Prepared folders: the same slices as the scans, whole or not at all."""

import concurrent.futures
import errno
import hashlib
import json
import multiprocessing
import operator
import os
import pickle
import resource
import shutil
import signal

import msgpack
import numpy as np
import pytest

from kst_jax.config import Selection
from kst_jax.data import prepare, prepared
from kst_jax.data.readers import nifti
from kst_jax.data.sources import open_source, split_subjects
from kst_jax.errors import InputError
from tests.programs import run_here
from tests.scans import IMAGES, KSPACE, write_h5, write_nifti, write_npy

PROGRAM = "kst_jax.data.prepare"
RNG = np.random.default_rng(0)


@pytest.fixture(scope="module")
def scans(tmp_path_factory):
    """Every kind of scan, of four people and more."""
    folder = tmp_path_factory.mktemp("scans")
    write_h5(folder / "a.h5", patient_id="x")
    write_h5(folder / "b.h5", KSPACE * 1e-7, patient_id="x")
    write_npy(folder / "c.npy")
    for number in (1, 2):
        volume = RNG.uniform(0, 100, (5, 6, 7)) * (np.arange(7) > number)
        write_nifti(folder / f"sub-{number}_T1w.nii.gz", volume.astype("f4"))
    return folder


@pytest.fixture(scope="module")
def whole(scans, tmp_path_factory):
    """All of them, prepared into several shards."""
    out = tmp_path_factory.mktemp("prepared") / "whole"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(prepare, "_SHARD_BYTES", 2000)
        prepare.prepare(str(scans), out)
    assert len(list(out.glob("*.array_record"))) > 2
    return out


@pytest.fixture
def copy(whole, tmp_path):
    return shutil.copytree(whole, tmp_path / "copy")


def require_equal(one, other):
    assert len(one) == len(other)
    for number in range(len(one)):
        a, b = vars(one[number]), vars(other[number])
        np.testing.assert_array_equal(a.pop("image"), b.pop("image"))
        assert a == b


# --- what is in a folder ---


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"slices": (0.2, 0.8), "drop_first": 1},
        {"fraction": 0.5, "seed": 3},
    ],
)
def test_a_source_is_the_same_from_the_scans_and_prepared(scans, whole, options):
    raw, ready = (open_source(str(x), Selection(**options)) for x in (scans, whole))
    require_equal(raw, ready)
    assert str(raw) == str(ready)
    assert raw.subjects == ready.subjects
    parts = [s.select(split_subjects(s.subjects, 0.5, 0)[0]) for s in (raw, ready)]
    require_equal(*parts)
    assert not ready.measured
    assert ready.select(["x"]).measured


def test_a_prepared_folder_among_other_scans(scans, whole, tmp_path):
    write_h5(tmp_path / "z.h5")
    assert open_source(f"{whole},{tmp_path}").volumes[-1] == "z"
    with pytest.raises(InputError, match=r"a\.h5 and .*a\.h5: both"):
        open_source(f"{whole},{scans}")


def test_records_can_be_read_without_this_library(whole):
    from array_record.python.array_record_data_source import ArrayRecordDataSource

    record = msgpack.unpackb(
        ArrayRecordDataSource([str(whole / "00000-of-00003.array_record")])[1]
    )
    image = np.frombuffer(record.pop("image"), "c8").reshape(record.pop("shape"))
    scale = record.pop("scale")
    assert record == {
        "subject": "x",
        "volume": "a",
        "file": "a.h5",
        "index": 1,
        "measured": True,
    }
    assert 0.5 < np.abs(image.view("f4")).max() < 1
    np.testing.assert_allclose(image * scale, IMAGES[1], atol=1e-6)


@pytest.mark.parametrize("scale", [0, 1e-40, 1e-9, 3.0, 65536.0, 3e38])
def test_values_come_back_exactly(scale):
    image = (IMAGES[0] / np.abs(IMAGES[0].view("f4")).max() * scale).astype("c8")
    for layout in (image, image.T, image[::2, ::-1]):
        found = prepared.decode(prepared.encode(layout, index=0))["image"]
        np.testing.assert_array_equal(found, layout)


def test_the_manifest_tells_what_is_there(scans, whole):
    manifest = json.loads((whole / "manifest.json").read_text())
    assert (manifest["slices"], manifest["volumes"]) == (4 + 4 + 4 + 5 + 4, 5)
    assert manifest["subjects"] == 4
    assert manifest["selection"]["plane"] == "axial"
    names = {shard["file"] for shard in manifest["shards"]}
    assert names | {"manifest.json"} == {path.name for path in whole.iterdir()}
    for shard in manifest["shards"]:
        data = (whole / shard["file"]).read_bytes()
        assert shard["bytes"] == len(data)
        assert shard["sha256"] == hashlib.sha256(data).hexdigest()
    volumes = [v for shard in manifest["shards"] for v in shard["volumes"]]
    assert [v["file"] for v in volumes] == sorted(p.name for p in scans.iterdir())
    assert volumes[-1]["slices"] == volumes[-1]["kept"] == [3, 4, 5, 6]
    assert volumes[-1]["depth"] == 7


def test_a_volume_is_decoded_once(scans, tmp_path, monkeypatch):
    loads = []
    load = nifti.load
    monkeypatch.setattr(nifti, "load", lambda p: loads.append(p) or load(p))
    prepare.prepare(f"{scans}/*.nii.gz", tmp_path / "out")
    assert sorted(path.name for path in loads) == [
        "sub-1_T1w.nii.gz",
        "sub-2_T1w.nii.gz",
    ]


# --- what a run may ask of it ---


@pytest.mark.parametrize(
    ("options", "cause"),
    [
        ({"plane": "coronal"}, "plane axial, not coronal.*data.plane=axial"),
        ({"min_foreground": 0.1}, "min_foreground 0.05, not 0.1"),
    ],
)
def test_another_cut_is_refused_for_volumes_alone(scans, whole, options, cause):
    with pytest.raises(InputError, match=cause):
        open_source(str(whole), Selection(**options))


def test_measured_scans_have_no_plane(scans, tmp_path):
    prepare.prepare(f"{scans}/*.h5", tmp_path / "out")
    options = {"plane": "coronal", "min_foreground": 0.5}
    raw, ready = (
        open_source(x, Selection(**options))
        for x in (f"{scans}/*.h5", str(tmp_path / "out"))
    )
    require_equal(raw, ready)


def test_a_part_serves_runs_that_take_no_more(scans, tmp_path):
    kept = {"drop_first": 1, "fraction": 0.5, "seed": 1}
    out = str(tmp_path / "out")
    prepare.prepare(str(scans), out, Selection(**kept))
    for options in (kept, kept | {"fraction": 0.3}):
        require_equal(
            *(open_source(str(x), Selection(**options)) for x in (scans, out))
        )
    for options in ({}, kept | {"fraction": 0.7}, kept | {"seed": 2}):
        with pytest.raises(InputError, match=r"does not hold slice \d of .*seed 1"):
            open_source(out, Selection(**options))


def test_other_processes_read_a_pickled_source_without_jax(whole):
    source = open_source(str(whole))
    assert source[0].index == 0  # its shard is open now
    assert pickle.loads(pickle.dumps(source)) == source
    spawn = multiprocessing.get_context("spawn")
    with concurrent.futures.ProcessPoolExecutor(1, mp_context=spawn) as worker:
        for index in (0, 9, -1):
            there = worker.submit(operator.getitem, source, index).result()
            np.testing.assert_array_equal(there.image, source[index].image)
        modules = worker.submit(eval, "set(__import__('sys').modules)").result()
    assert "jax" not in modules


# --- damage ---


@pytest.mark.parametrize("change", ["missing", "truncated"])
def test_sizes_are_checked_on_opening(copy, change):
    shard = sorted(copy.glob("*.array_record"))[1]
    data = shard.read_bytes()
    shard.unlink()
    if change == "truncated":
        shard.write_bytes(data[:-1])
    with pytest.raises(InputError, match=r"00001-of-\d+.array_record: (is miss|has)"):
        open_source(str(copy))


def test_flipped_bits_are_found(copy):
    shard = sorted(copy.glob("*.array_record"))[0]
    intact = shard.read_bytes()
    used = np.flatnonzero(np.frombuffer(intact, "u1"))  # the rest is mostly padding
    failures = 0
    for place in RNG.choice(used, 60):
        data = bytearray(intact)
        data[place] ^= 1 << RNG.integers(8)
        shard.write_bytes(data)
        with pytest.raises(InputError, match=rf"{shard.name} differs"):
            prepared.verify(copy)
        source = open_source(str(copy))
        try:  # damage to padding, or to what nothing needs, does no harm
            for number in range(4):
                np.testing.assert_allclose(
                    source[number].image, IMAGES[number], atol=1e-6
                )
        except InputError as error:
            assert shard.name in str(error)  # noqa: PT017
            failures += 1
    assert failures > 30
    shard.write_bytes(intact)
    prepared.verify(copy)


def test_shards_of_another_folder_are_noticed(copy, tmp_path):
    (tmp_path / "one").mkdir()
    write_h5(tmp_path / "one" / "q.h5", patient_id="x")
    prepare.prepare(str(tmp_path / "one"), tmp_path / "other")
    (foreign,) = (tmp_path / "other").glob("*.array_record")
    manifest = json.loads((copy / "manifest.json").read_text())
    manifest["shards"][0]["bytes"] = foreign.stat().st_size
    (copy / "manifest.json").write_text(json.dumps(manifest))
    shutil.copy(foreign, copy / manifest["shards"][0]["file"])
    with pytest.raises(InputError, match=r"is slice 0 of q\.h5, but by manifest"):
        open_source(str(copy))[0]


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("{", "manifest.json: cannot be read"),
        ('{"format": 2}', "has format 2"),
        ('{"format": 1, "shards": [{}]}', "cannot be read"),
        ('{"format": 1, "shards": [], "selection": {}}', "names no scan"),
    ],
)
def test_a_damaged_manifest(copy, text, cause):
    (copy / "manifest.json").write_text(text)
    with pytest.raises(InputError, match=cause):
        open_source(str(copy))


# --- interruption, and what is already there ---


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def written(path):
    """What tells a file from one written anew; when it was read does not."""
    found = path.stat()
    return found.st_ino, found.st_mtime_ns, found.st_size


def test_it_carries_on_after_an_interruption(scans, whole, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_SHARD_BYTES", 2000)
    out, encode, read = tmp_path / "out", prepared.encode, []

    def killed(**about):
        read.append(about["file"])
        if about["file"] == "c.npy":
            raise KeyboardInterrupt
        return encode(**about)

    monkeypatch.setattr(prepared, "encode", killed)
    with pytest.raises(KeyboardInterrupt):
        prepare.prepare(str(scans), out)
    assert set(read) == {"a.h5", "b.h5", "c.npy"}
    assert not (out / "manifest.json").exists()
    assert not list(out.glob(".*"))
    with pytest.raises(InputError, match=r"has not finished.*same command"):
        open_source(str(out))
    with pytest.raises(InputError, match="has not finished"):
        prepared.verify(out)
    with pytest.raises(InputError, match=r"another preparation: fraction 1\.0 there"):
        prepare.prepare(str(scans), out, Selection(fraction=0.5))
    with pytest.raises(InputError, match=r"another preparation: scans of"):
        prepare.prepare(f"{scans}/a.h5", out)
    (out / ".00001-of-00003.array_record.99.partial").write_bytes(b"left by a kill")
    first = written(out / "00000-of-00003.array_record")
    monkeypatch.setattr(prepared, "encode", encode)
    prepare.prepare(str(scans), out)
    assert contents(out) == contents(whole)
    assert written(out / "00000-of-00003.array_record") == first


def test_a_shard_is_redone_where_its_scan_changed(scans, tmp_path, monkeypatch):
    monkeypatch.setattr(prepare, "_SHARD_BYTES", 1)
    here = shutil.copytree(scans, tmp_path / "here")
    (here / "c.npy").write_bytes(b"no array")
    with pytest.raises(InputError, match=r"c\.npy: not a readable"):
        prepare.prepare(str(here), tmp_path / "out")
    assert len(list((tmp_path / "out").glob("*.array_record"))) == 2
    write_h5(here / "a.h5", KSPACE * 2, patient_id="x")
    os.utime(here / "a.h5", (1, 1))
    write_npy(here / "c.npy")
    prepare.prepare(str(here), tmp_path / "out")
    require_equal(*(open_source(str(x)) for x in (here, tmp_path / "out")))


def test_a_finished_folder_is_left_alone(scans, copy, tmp_path):
    # The copy says that it was made of these very scans.
    before = contents(copy)
    prepare.prepare(str(scans), copy)
    assert contents(copy) == before
    with pytest.raises(InputError, match="plane axial there, coronal here"):
        prepare.prepare(str(scans), copy, Selection(plane="coronal"))
    with pytest.raises(InputError, match="is prepared already"):
        prepare.prepare(str(copy), tmp_path / "again")
    with pytest.raises(InputError, match="holds something else"):
        prepare.prepare(str(scans), scans)
    assert contents(copy) == before
    os.utime(scans / "a.h5")
    with pytest.raises(InputError, match=r"a\.h5 has changed since"):
        prepare.prepare(str(scans), copy)


@pytest.fixture
def full_disk():
    """Files of this process cannot grow beyond 64 KiB; a shard is larger."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, before[1]))
    yield
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
    signal.signal(signal.SIGXFSZ, handler)


def test_a_full_disk(tmp_path, request, scans):
    request.getfixturevalue("full_disk")
    out = tmp_path / "out"
    cause = os.strerror(errno.EFBIG)
    with pytest.raises(InputError, match=f"out: cannot be written.*{cause}.*Make room"):
        prepare.prepare(str(scans), out)
    assert [path.name for path in out.iterdir()] == ["unfinished.json"]


# --- the command line ---


def test_the_command_line(tmp_path):
    out = tmp_path / "out"
    done = run_here(PROGRAM, "demo:train,demo:test", out, "--workers", 2)
    assert done.returncode == 0, done.stderr
    assert "96 slices, 2 volumes, 2 subjects" in done.stdout
    assert f"--config.data.train={out}" in done.stdout
    prepare.prepare("demo:train,demo:test", tmp_path / "same")
    assert contents(out) == contents(tmp_path / "same")
    done = run_here(PROGRAM, "--verify", out)
    assert done.returncode == 0, done.stderr
    assert "every file is as it was written" in done.stdout
    for args, cause in (
        (("demo:train", out), "holds another preparation"),
        (("demo:train", tmp_path / "x", "--slices", 1, 0), "0 <= start < stop"),
        (("demo:train", out, "--drop-first=1"), "drop_first 0 there, 1 here"),
        (("demo:train", tmp_path / "x", "--workers", 0), "give 1 or more"),
        ((tmp_path / "none", tmp_path / "x"), "no such file or folder"),
        (("--verify", tmp_path), "not a folder that"),
    ):
        done = run_here(PROGRAM, *args)
        assert done.returncode == 1
        assert "error: " in done.stderr
        assert cause in done.stderr


def test_a_bad_scan_stops_all_workers_with_one_message(scans, tmp_path):
    here = shutil.copytree(scans, tmp_path / "here")
    for number in range(3):
        (here / f"{number}.h5").write_bytes(b"<html>")
    with pytest.raises(InputError, match=r"0\.h5: not an HDF5 file"):
        prepare.prepare(str(here), tmp_path / "out", workers=2)
