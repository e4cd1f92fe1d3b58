"""Files that are damaged or mean harm: one clear error, and nothing else happens."""

import json
import re
import subprocess
import sys

import jax
import numpy as np
import pytest

from kst_jax.export.command import write
from tests import hostile
from tests.conftest import ROOT
from tests.scans import KSPACE, write_h5

pytestmark = pytest.mark.slow

MIB = 2**20
# Beyond what the program takes before; each bomb would expand to 256 MiB and more.
BOUND = 128 * MIB
# Harmless: values that nothing needs, and attributes and headers that say little.
MAY_BE_READ = re.compile(
    r"(?!network)\w+/(.* )?(damaged|changed) \d+"  # damage at random
    r"|before"
    r"|scan/h5 patient .*"
    r"|scan/nii slope inf"
)


def run(*args, **options):
    return subprocess.run(
        [sys.executable, *map(str, args)],
        **{"cwd": ROOT, "capture_output": True, "text": True, "timeout": 300} | options,
    )


def network(kspace, mask):
    return kspace * mask[..., None]


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    """A program for images of 6x5, as `kst_jax.export` leaves it."""
    (b,) = jax.export.symbolic_shape("b")
    program = jax.export.export(jax.jit(network), platforms=("cpu",))(
        jax.ShapeDtypeStruct((b, 6, 5, 2), np.float32),
        jax.ShapeDtypeStruct((b, 6, 5), np.bool_),
    )
    folder = tmp_path_factory.mktemp("exported") / "out"
    write(program, folder)
    return folder


@pytest.fixture(scope="module")
def corpus(tmp_path_factory, exported):
    folder = tmp_path_factory.mktemp("corpus")
    hostile.write(folder, (exported / "network.stablehlo").read_bytes())
    return folder


@pytest.fixture(scope="module")
def outcomes(corpus):
    """What became of each case, and the peak memory by then; `before` first of all."""
    done = run("-m", "tests.hostile", corpus)
    rows = [json.loads(line) for line in done.stdout.splitlines()]
    last = rows[-1][0] if rows else "none"
    assert done.returncode == 0, f"ended after {last}: {done.stderr[-2000:]}"
    return {name: (outcome, peak) for name, outcome, peak in rows}


def test_every_case_is_refused_or_read(corpus, outcomes):
    cases = {f"{path.parent.name}/{path.name}" for path in corpus.glob("*/*")}
    assert set(outcomes) == cases | {"before"}
    assert len(cases) > 200
    failed = {n: o for n, (o, _) in outcomes.items() if o not in ("refused", "read")}
    assert not failed


def test_files_are_read_before_they_are_damaged(outcomes):
    """Or else what refuses everything would pass the tests below."""
    intact = {name: o for name, (o, _) in outcomes.items() if name.endswith(" intact")}
    assert len(intact) > 5
    assert set(intact.values()) == {"read"}


def test_what_means_harm_is_refused(outcomes):
    read = {
        name
        for name, (outcome, _) in outcomes.items()
        if outcome == "read" and not name.endswith(" intact")
    }
    assert {name for name in read if not MAY_BE_READ.fullmatch(name)} == set()
    damaged = [name for name in outcomes if MAY_BE_READ.fullmatch(name)]
    assert 0.2 * len(damaged) < len(read) < 0.8 * len(damaged)


def test_no_pickle_runs(corpus, outcomes):
    marker = corpus / hostile.MARKER
    assert not marker.exists()
    for path in corpus.glob("weights/*unzipped/model.pth"):  # the trap itself works
        with path.open("rb") as file:
            hostile.pickle.load(file).close()
        assert marker.exists()
        marker.unlink()


def test_memory_stays_within_its_bound(outcomes):
    before = outcomes["before"][1]
    if not before:
        pytest.skip("this system does not tell the peak memory of a process")
    assert max(peak for _, peak in outcomes.values()) - before < BOUND


def test_the_doctor_reads_it_all_at_once(corpus):
    done = run("-m", "kst_jax.doctor", "--json", corpus / "scan")
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    *found, total = map(json.loads, done.stdout.splitlines())
    assert total["summary"]["errors"] > 80
    assert {f["path"] for f in found} > {
        str(path) for path in corpus.glob("scan/*/scan.h5") if path.is_file()
    }


def test_links_in_a_circle_end(tmp_path):
    write_h5(tmp_path / "a.h5", KSPACE)
    for name in "xy":
        (tmp_path / name).symlink_to(tmp_path)
    paths = (tmp_path, tmp_path / "**" / "*.h5", tmp_path / "**")
    done = run("-m", "kst_jax.doctor", "--size", 8, 8, "--pad", *paths)
    assert "1 scans of 1 people" in done.stdout


@pytest.mark.parametrize("case", ["protocol 2", "pipe model.pth"])
def test_convert_refuses_with_one_message(corpus, tmp_path, case):
    path = corpus / "weights" / case / "model.pth"
    done = run("-m", "kst_jax.convert", path, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith(f"error: {path}: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out").exists()
    assert not (corpus / hostile.MARKER).exists()


def reconstruct(folder, *args):
    return run("-I", folder / "reconstruct.py", *args, cwd=folder)


def test_an_exported_network_reads_what_it_should(exported, tmp_path):
    mask = np.arange(30).reshape(6, 5) % 2 == 0
    np.savez(tmp_path / "in.npz", kspace=KSPACE, mask=np.stack([mask] * 4))
    done = reconstruct(exported, tmp_path / "in.npz", tmp_path / "out.npy")
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), KSPACE * mask)


@pytest.mark.parametrize("part", ["program", "arrays"])
def test_an_exported_network_refuses_with_one_message(exported, corpus, part, tmp_path):
    folder, source = tmp_path / "out", corpus / "arrays" / "bomb" / "in.npz"
    folder.mkdir()
    for path in exported.iterdir():
        data = path.read_bytes()
        if part == "program" and path.suffix == ".stablehlo":
            data = data[:-1]
        (folder / path.name).write_bytes(data)
    done = reconstruct(folder, source, tmp_path / "out.npy")
    assert done.returncode == 1
    named = folder if part == "program" else source
    assert done.stderr.startswith(f"error: {named}: ")
    assert len(done.stderr.splitlines()) == 1
    assert not (tmp_path / "out.npy").exists()
