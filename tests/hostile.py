"""Files that are damaged or mean harm, and a program that reads them.

    python -m tests.hostile FOLDER

reads FOLDER/<reader>/<case>/* and prints a line of JSON before, and one for each case:
what came of it and the program's peak memory so far. It ends if a case takes too long.
"""

import io
import itertools
import json
import os
import pathlib
import pickle
import shutil
import signal
import struct
import sys
import zipfile

import h5py
import nibabel as nib
import numpy as np

from kst_jax.config import Config
from kst_jax.convert import torch_file
from kst_jax.data import sources
from kst_jax.data.readers.npy import read_mask_bank
from kst_jax.data_config import DataConfig, Selection
from kst_jax.doctor.command import examinations
from kst_jax.errors import InputError
from kst_jax.export import standalone
from kst_jax.programs import files
from kst_jax.runs import checkpoints, integrity, subjects
from tests.hostile_scans import BOMB, FOREIGN, analyze, header, npy, scans
from tests.scans import CHANNELS, KSPACE, VOLUME, write_h5, write_nifti, write_npy

SECONDS = 30  # for one case; a healthy one takes milliseconds
MARKER = "was run"

# --- reading ---


def read_scan(folder):
    """What runs do, and what the doctor says: it must not pass what they refuse."""
    path = next(p for p in sorted(folder.iterdir()) if p.name.startswith("scan"))
    selection, data = Selection(), DataConfig(size=(8, 8), pad=True)
    try:
        examined = list(examinations(str(path), data, selection))
        healthy = not any(f.level == "error" for e in examined for f in e.findings)
    except InputError:
        healthy = False
    try:
        source = sources.open_source(str(path))
        assert repr(source)
        for number in range(len(source)):
            assert np.isfinite(source[number].image).all()
    except InputError:
        assert not healthy, "the doctor passes what a run refuses"
        raise


READERS = {
    "scan": read_scan,
    "bank": lambda folder: read_mask_bank(folder / "bank.npy"),
    "weights": lambda folder: torch_file.load(folder / "model.pth"),
    "config": checkpoints.read_config,
    "people": lambda folder: subjects.read(folder, "train"),
    "run": checkpoints.read_parameters,
    "network": standalone.load,
    "arrays": lambda folder: standalone.read(str(folder / "in.npz"), (6, 5)),
}


def read(case):
    reader = case.parent.name
    signal.alarm(SECONDS)
    try:
        READERS[reader](case)
        outcome = "read"
    except InputError as error:
        outcome = "refused" if str(case) in str(error) else f"unnamed: {error}"
    except Exception as error:
        # The exported network's program is on its own: its main() reports anything.
        alone = reader in ("network", "arrays")
        outcome = "refused" if alone else f"{type(error).__name__}: {error}"
    signal.alarm(0)
    print(json.dumps([f"{reader}/{case.name}", outcome, peak()]), flush=True)


def peak():
    """Bytes of memory at most so far; 0 where the system does not tell."""
    # Not getrusage, which begins with the peak of the process that started this one.
    status = pathlib.Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return sum(int(x.split()[1]) * 2**10 for x in lines if x.startswith("VmHWM"))


# --- writing: damage at random ---


def damaged(data, trials, seed=0, head=700):
    """Truncated, with flipped bits, or with bytes of 0 or 255, in turn."""
    rng = np.random.default_rng(seed)
    for trial in range(trials):
        bad = bytearray(data)
        places = rng.integers(min(len(bad), head), size=1 + trial % 5)
        if trial % 3 == 0:
            del bad[rng.integers(len(bad)) :]
        for place in places if trial % 3 else ():
            bad[place] = 255 * (trial % 2) if trial % 3 == 1 else bad[place] ^ 16
        if bytes(bad) != data:
            yield f"damaged {trial}", bytes(bad)


def write_damaged(folder):
    here = folder / "intact"
    here.mkdir()
    write_h5(here / "a.h5")
    with h5py.File(here / "b.h5", "w", libver="latest") as file:
        options = {"chunks": (1, 6, 5), "compression": "gzip", "shuffle": True}
        file.create_dataset("kspace", data=KSPACE, fletcher32=True, **options)
        file.attrs["patient_id"] = "p1"
    write_npy(here / "a.npy")
    write_nifti(here / "a.nii")
    write_nifti(here / "a.nii.gz")
    nib.save(nib.Nifti2Image(VOLUME, np.eye(4)), here / "b.nii")
    for path in sorted(here.iterdir()):
        kind = path.name.partition(".")[2]
        yield "scan", f"{path.name} intact", {f"scan.{kind}": path.read_bytes()}
        for name, data in damaged(path.read_bytes(), 9, head=3000):
            yield "scan", f"{path.name} {name}", {f"scan.{kind}": data}
    np.save(here / "bank.npy", np.ones((2, 6, 5), bool))
    for name, data in damaged((here / "bank.npy").read_bytes(), 6, head=140):
        yield "bank", name, {"bank.npy": data}
    config = json.dumps({"data": {"size": [128, 128]}, "train": {"steps": 3}})
    for name, data in damaged(config.encode(), 6):
        yield "config", name, {"config.json": data}
    shutil.rmtree(here)


# --- writing: what means harm ---


class Harm:
    """Unpickled, it writes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return open, (str(self.marker), "w")


def pickles(marker):
    for protocol in (2, 4):  # as PyTorch writes, and with instructions of its own
        yield f"protocol {protocol}", pickle.dumps(Harm(marker), protocol)


def archive(entries, packed=False):
    stream = io.BytesIO()
    how = zipfile.ZIP_DEFLATED if packed else zipfile.ZIP_STORED
    with zipfile.ZipFile(stream, "w", how, compresslevel=1) as file:
        for name, data in entries.items():
            file.writestr(name, data)
    return stream.getvalue()


def arrays(**changes):
    """An archive as `numpy.savez` makes it."""
    made = {"kspace": KSPACE, "mask": np.ones(KSPACE.shape, bool)} | changes
    stream = io.BytesIO()
    np.savez(stream, **made)
    return stream.getvalue()


def pickled(marker):
    """Pickles that do harm, under every name that is read."""
    for name, program in pickles(marker):
        objects = npy(descr="'|O'", shape="(1,)", data=program)
        yield "scan", f"{name} as npy", {"scan.npy": program}
        yield "scan", f"{name} in npy", {"scan.npy": objects}
        yield "bank", f"{name} in npy", {"bank.npy": objects}
        yield "bank", f"{name} alone", {"bank.npy": program}
        saved = {"m/data.pkl": program, "m/version": b"3"}
        yield "weights", f"{name}", {"model.pth": archive(saved)}
        yield "weights", f"{name} unzipped", {"model.pth": program}
        packed = archive({"kspace.npy": objects, "mask.npy": objects})
        yield "arrays", f"{name}", {"in.npz": packed}
        yield "arrays", f"{name} alone", {"in.npz": program}


JSON = {
    "half": b'{"data": ',
    "a list": b"[1, 2]",
    "nested": b"[" * 100_000,
    "not text": b"\xff\xfe\x00",
}
CONFIGS = {
    "mapping for a pair": b'{"data": {"size": {}}}',
    "network of no name": b'{"model": {"name": []}}',
    "unknown": b'{"__class__": {"a": 1}}',
    "not a number": b'{"train": {"learning_rate": NaN}}',
}


def archives_and_texts():
    wide = npy(shape="(33554432, 6, 5)", descr="'<c8'")
    bombs = {"kspace.npy": wide + bytes(BOMB), "mask.npy": wide}
    yield "arrays", "bomb", {"in.npz": lying(archive(bombs, packed=True))}
    yield (
        "arrays",
        "declared huge",
        {"in.npz": archive({"kspace.npy": npy(shape="(1099511627776, 6, 5)")})},
    )
    yield "arrays", "no zip", {"in.npz": b"PK\3\4" + bytes(50)}
    yield "arrays", "no kspace", {"in.npz": archive({"x": b""})}
    yield "arrays", "pairs", {"in.npz": arrays(kspace=CHANNELS)}
    yield "arrays", "other size", {"in.npz": arrays(kspace=KSPACE[:, :3])}
    yield "arrays", "other masks", {"in.npz": arrays(mask=np.ones((1, 6, 5), bool))}
    yield "arrays", "text masks", {"in.npz": arrays(mask=KSPACE.astype(str))}
    bomb = {"m/data.pkl": bytes(BOMB), "m/version": b"3"}
    yield "weights", "bomb", {"model.pth": archive(bomb, packed=True)}
    for name, data in FOREIGN.items():
        yield "weights", name, {"model.pth": data}
        yield "arrays", name, {"in.npz": data}
        yield "bank", name, {"bank.npy": data}
    for name, data in JSON.items():
        yield "config", name, {"config.json": data}
        yield "people", name, {"train_subjects.json": data}
    for name, data in CONFIGS.items():
        yield "config", name, {"config.json": data}


def lying(data):
    """A zip whose directory claims that its first entry is larger than any bound."""
    place = data.index(b"PK\1\2") + 24
    return data[:place] + struct.pack("<I", 2**32 - 2) + data[place + 4 :]


# What has a file's name and is none.
SPECIAL = {
    "pipe": os.mkfifo,
    "folder": os.mkdir,
    "loop": lambda path: path.symlink_to(path.name),
    "broken link": lambda path: path.symlink_to("nowhere"),
    "device": lambda path: path.symlink_to("/dev/zero"),
}


def write_specials(folder):
    names = {
        "scan": ["scan.h5", "scan.npy", "scan.nii.gz", "scan.hdr"],
        "bank": ["bank.npy"],
        "weights": ["model.pth"],
        "config": ["config.json"],
        "people": ["train_subjects.json"],
        "arrays": ["in.npz"],
    }
    for reader, files_ in names.items():
        for name, (case, make) in itertools.product(files_, SPECIAL.items()):
            if name == "scan.h5" or case in ("pipe", "device"):
                put(folder / reader / f"{case} {name}", {})
                make(folder / reader / f"{case} {name}" / name)
    for case, make in SPECIAL.items():
        pair = analyze()
        put(folder / "scan" / f"image {case}", {"scan.hdr": pair["scan.hdr"]})
        make(folder / "scan" / f"image {case}" / "scan.img")
    put(folder / "scan" / "affine pipe", analyze())
    os.mkfifo(folder / "scan" / "affine pipe" / "scan.mat")


def write_sparse(folder):
    """Files that are large on paper alone."""
    for reader, name, start in (
        ("scan", "scan.npy", b"\x93NUMPY\2\0" + struct.pack("<I", 2**30)),
        ("scan", "scan.nii", header(extension=2**30, vox_offset=2e9)),
        ("scan", "scan.h5", b"\x89HDF\r\n\x1a\n"),
        ("bank", "bank.npy", npy(descr="'|b1'", shape="(1, 32768, 32768)")),
        ("config", "config.json", b"["),
    ):
        case = folder / reader / f"sparse {name}"
        case.mkdir()
        (case / name).write_bytes(start)
        os.truncate(case / name, len(start) + 2**30)


def write_runs(folder):
    """Checkpoints whose checksums fit, as damage before them or malice would leave."""
    whole = folder / "whole"
    kernel = np.random.default_rng(0).normal(size=(20, 30)).astype("f4")
    checkpoints.write_parameters(whole, {"a": {"kernel": kernel}}, Config())
    parts = [p for p in (whole / "checkpoints" / "0").rglob("*") if p.is_file()]
    rng = np.random.default_rng(0)
    for trial in range(12):
        here = folder / "run" / f"changed {trial}"
        shutil.copytree(whole, here)
        file = here / sorted(parts)[trial % len(parts)].relative_to(whole)
        data = bytearray(file.read_bytes())
        if trial % 3 == 0:
            del data[len(data) // 2 :]
        for place in rng.integers(len(data), size=5) if trial % 3 else ():
            data[place] = rng.integers(256)
        file.write_bytes(data)
        if file.name != "checksums.json":
            integrity.note(here / "checkpoints" / "0")
    shutil.rmtree(whole)
    for name, text in JSON.items():
        here = folder / "run" / f"checksums {name}" / "checkpoints" / "0"
        here.mkdir(parents=True)
        (here / "checksums.json").write_bytes(text)
    zeros_ = {"a": {"kernel": np.zeros(BOMB // 4, np.float32)}}
    checkpoints.write_parameters(folder / "run" / "bomb", zeros_, Config())


def write_networks(folder, program):
    """Exported programs with damage that crashes what reads them unchecked."""
    for name, data in damaged(program, 6, head=len(program)):
        here = folder / "network" / name
        here.mkdir(parents=True)
        (here / "network.stablehlo").write_bytes(program)
        sum_ = files.sha256_of(here / "network.stablehlo")
        about = {"sha256": sum_, "jax": "0.10.2", "date": "2026-11-28"}
        (here / "network.json").write_text(json.dumps(about))
        (here / "network.stablehlo").write_bytes(data)


def write(folder, program):
    """The whole corpus: a folder for each case."""
    for reader, name, content in write_damaged(folder):
        put(folder / reader / name, content)
    for name, content in scans():
        put(folder / "scan" / name, content)
    for reader, name, content in (*pickled(folder / MARKER), *archives_and_texts()):
        put(folder / reader / name, content)
    for write_some in (write_specials, write_sparse, write_runs):
        write_some(folder)
    write_networks(folder, program)


def put(case, content):
    case.mkdir(parents=True)
    for name, data in content.items():
        (case / name).write_bytes(data)


def main(folder):
    print(json.dumps(["before", "read", peak()]), flush=True)
    for case in sorted(pathlib.Path(folder).glob("*/*")):
        read(case)


if __name__ == "__main__":
    main(*sys.argv[1:])
