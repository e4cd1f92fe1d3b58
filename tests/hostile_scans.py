"""Scans that mean harm: bytes of bombs, lies, and what is no scan at all."""

import io
import struct
import tempfile
import zlib
from pathlib import Path

import h5py
import nibabel as nib
import numpy as np
import scipy.io

from tests import mrd_files as mrd
from tests.scans import KSPACE, VOLUME

BOMB = 2**28  # zeros that a few hundred kilobytes expand to


def zeros(count=BOMB, wbits=zlib.MAX_WBITS):
    packer = zlib.compressobj(1, zlib.DEFLATED, wbits)
    block = bytes(2**20)
    parts = [packer.compress(block) for _ in range(count // len(block))]
    return b"".join([*parts, packer.flush()])


def gzipped(data):
    packer = zlib.compressobj(1, zlib.DEFLATED, 16 + zlib.MAX_WBITS)
    return packer.compress(data) + packer.flush()


def npy(descr="'<c8'", shape="(4, 6, 5)", data=b"", version=1):
    header = f"{{'descr': {descr}, 'fortran_order': False, 'shape': {shape}}}\n"
    size = struct.pack("<H" if version == 1 else "<I", len(header))
    return b"\x93NUMPY" + bytes([version, 0]) + size + header.encode() + data


NPY = {
    "huge": npy(shape="(4, 1099511627776, 1099511627776)"),
    "overflowing": npy(shape="(4294967296, 4294967296, 4294967296)"),
    "negative": npy(shape="(-4, 6, 5)", data=bytes(960)),
    "nested": npy(shape="(" * 4000 + ")" * 4000),
    "minus": npy(shape="-" * 9000 + "1"),
    "objects": npy(descr="'O'", data=b"\x80\x04N."),
    "recursive": npy(descr=f"{'[' * 99}('a', '<f4'){']' * 99}", data=bytes(960)),
    "subarrays": npy(descr="('<f4', (65536, 65536))", data=bytes(960)),
    "version 9": npy(version=9, data=bytes(960)),
    "expression": npy(shape="__import__('os').abort()"),
}


def header(kind=nib.Nifti1Header, extension=None, **fields):
    """The header of a volume, as bytes, with whatever in its fields."""
    made = kind()
    made.set_data_shape(VOLUME.shape)
    made.set_data_dtype(np.float32)
    made["magic"] = made.single_magic
    made["vox_offset"] = made.single_vox_offset
    for name, value in fields.items():
        made[name] = value
    if extension is None:
        return made.binaryblock + bytes(4)
    return made.binaryblock + b"\1\0\0\0" + struct.pack("<ii", extension, 6)


DIMS = {"huge": [3, 32767, 32767, 32767], "negative": [3, -5, 6, 7], "ranks": [99, 1]}
NII = {
    **{
        f"dim {name}": header(dim=(dim + [1] * 8)[:8]) + bytes(840)
        for name, dim in DIMS.items()
    },
    **{
        f"offset {value}": header(vox_offset=value) + bytes(840)
        for value in (-1, np.nan, 1e30, 100)
    },
    **{
        f"type {code}": header(datatype=code) + bytes(840)
        for code in (0, 32, 128, 1536, -7)
    },
    **{
        f"slope {value}": header(scl_slope=value) + VOLUME.tobytes()
        for value in (np.inf, 1e38)
    },
    **{
        f"extension {size}": header(extension=size, vox_offset=2e9) + bytes(840)
        for size in (-16, 2**31 - 16)
    },
}
WRONG_TYPES = ["i4", "S5", [("a", "c8")]]
FOREIGN = {
    "nothing": b"",
    "web page": b"<!DOCTYPE html><html><body>Log in</body></html>" * 20,
    "noise": np.random.default_rng(0).bytes(5000),
    "superblock alone": b"\x89HDF\r\n\x1a\n",
    "magic alone": b"\x93NUMPY\1\0",
    "gzip of gzip": gzipped(gzipped(bytes(500))),
}


def h5(write, **options):
    """Bytes of an HDF5 file."""
    stream = io.BytesIO()
    with h5py.File(stream, "w", **options) as file:
        write(file)
    return stream.getvalue()


def with_chunks(data, shape=KSPACE.shape, deflate=1, **options):
    """A dataset whose chunks hold these very bytes."""

    def write(file):
        created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
        created.set_chunk((1, 6, 5))
        for _ in range(deflate):
            created.set_deflate(1)
        space = h5py.h5s.create_simple(shape)
        kind = h5py.h5t.py_create(np.dtype("c8"))
        dataset = h5py.h5d.create(file.id, b"kspace", kind, space, created)
        for number in range(len(KSPACE)):
            dataset.write_direct_chunk((number, 0, 0), data)

    return h5(write, **options)


def with_values(values):
    return h5(lambda file: file.update(kspace=values))


def with_link(make):
    def write(file):
        file["deep/scan"] = KSPACE
        file["deep/again"] = file["/"]  # a cycle of hard links
        file["kspace"] = make(file)

    return h5(write)


def with_attribute(value):
    def write(file):
        file["kspace"] = KSPACE
        file.attrs["patient_id"] = value

    return h5(write)


def with_filter(**options):
    kspace = {"data": np.arange(120).reshape(4, 6, 5), "chunks": (1, 6, 5)}
    return h5(lambda file: file.create_dataset("kspace", **kspace, **options))


def with_external(path):
    options = {"shape": KSPACE.shape, "dtype": "c8", "external": [(path, 0, 960)]}
    return h5(lambda file: file.create_dataset("kspace", **options))


def with_virtual(path):
    layout = h5py.VirtualLayout(KSPACE.shape, "c8")
    layout[:] = h5py.VirtualSource(path, "kspace", KSPACE.shape)
    return h5(lambda file: file.create_virtual_dataset("kspace", layout))


def hdf5_files():
    bomb = zeros()
    yield "bomb", with_chunks(bomb)
    yield "bomb in a bomb", with_chunks(zlib.compress(bomb, 1), deflate=2)
    yield "latest bomb", with_chunks(bomb, libver="latest")
    yield "unpacked garbage", with_chunks(b"no zlib stream")
    yield "chunk too long", with_chunks(bytes(2**16), deflate=0)
    yield "declared huge", with_chunks(zlib.compress(bytes(240)), (4, 2**15, 2**10))
    yield "declared long", with_chunks(zlib.compress(bytes(240)), (2**40, 6, 5))
    yield (
        "never written",
        h5(lambda file: file.create_dataset("kspace", (4, 2**20, 2**20), "c8")),
    )
    yield "filter", with_filter(scaleoffset=0)
    yield "soft cycle", with_link(lambda _: h5py.SoftLink("/kspace"))
    yield "endless soft", with_link(lambda _: h5py.SoftLink("/deep/again/" * 500))
    yield "outward link", with_link(lambda _: h5py.ExternalLink("/dev/zero", "x"))
    yield "hard cycle", with_link(lambda file: file["/"])
    yield "external device", with_external("/dev/zero")
    yield "virtual", with_virtual("/etc/passwd")
    for number, kind in enumerate(WRONG_TYPES):
        yield f"of type {number}", with_values(np.zeros((2, 6, 5), kind))
    for rank in (0, 2, 5):
        yield f"rank {rank}", with_values(np.ones([2] * rank, "c8"))
    for name, value in {
        "nothing": h5py.Empty("S3"),
        "long": "x" * 60_000,
    }.items():
        yield f"patient {name}", with_attribute(value)


def mrd_files():
    """ISMRMRD files that lie about their lines."""
    good, one = mrd.lines(mrd.scan()[1]), np.ones((3, 24))
    radial = mrd.header(trajectory="radial")
    yield "outside", written(*good, mrd.line(one, 4000))
    yield "channels", written(*good, mrd.line(np.ones((5, 24)), 1))
    yield "bandwidth", written(*good, mrd.line(one, 0, [19], sample_time_us=9.0))
    yield "trajectory", written(*good, xml=radial)
    yield "truncated", written(*good)[:9000]
    yield "no lines", written(*mrd.lines(mrd.scan()[1], flags=[23]))


def written(*lines, xml=None):
    with tempfile.TemporaryDirectory() as folder:
        return mrd.write(Path(folder) / "scan.mrd", lines, xml).read_bytes()


def scans():
    for name, data in mrd_files():
        yield f"mrd {name}", {"scan.mrd": data}
        yield f"mrd {name}.h5", {"scan.h5": data}
    sizes = b"# Dimensions\n6 5 1 1 1 1 1 1 1 1 1 1 1 4 1 1\n"
    yield "cfl short", {"scan.hdr": sizes, "scan.cfl": bytes(900)}
    sizes = b"# Dimensions\n999999999 999999999\n"
    yield "cfl huge", {"scan.hdr": sizes, "scan.cfl": bytes(900)}
    for name, data in hdf5_files():
        yield f"h5 {name}", {"scan.h5": data}
    for name, data in NPY.items():
        yield f"npy {name}", {"scan.npy": data}
    for name, data in NII.items():
        yield f"nii {name}", {"scan.nii": data}
        if name.startswith(("dim", "extension")):
            yield f"nii.gz {name}", {"scan.nii.gz": gzipped(data)}
    for name, data in FOREIGN.items():
        for suffix in (".h5", ".npy", ".nii", ".nii.gz", ".hdr"):
            yield f"{name}{suffix}", {f"scan{suffix}": data, "scan.img": data}
    packed = zeros(wbits=16 + zlib.MAX_WBITS)
    for kind in (nib.Nifti1Header, nib.Nifti2Header):
        bomb = gzipped(header(kind, extension=BOMB, vox_offset=2 * BOMB)) + packed
        yield f"{kind.__name__} bomb", {"scan.nii.gz": bomb}
    pair = analyze()
    yield "analyze alone", {"scan.hdr": pair["scan.hdr"]}
    yield "analyze short", pair | {"scan.img": pair["scan.img"][:50]}
    yield "analyze with SPM's affine a bomb", pair | {"scan.mat": affine()}


def affine():
    """SPM's affine, and beside it in the file a bomb."""
    stream = io.BytesIO()
    values = {"M": np.eye(4), "junk": np.zeros(BOMB // 8)}
    scipy.io.savemat(stream, values, do_compression=True)
    return stream.getvalue()


def analyze():
    parts = nib.Spm99AnalyzeImage.make_file_map()
    for part in parts.values():
        part.fileobj = io.BytesIO()
    nib.Spm99AnalyzeImage(VOLUME, np.eye(4)).to_file_map(parts)
    names = {"header": "scan.hdr", "image": "scan.img"}
    return {name: parts[part].fileobj.getvalue() for part, name in names.items()}
