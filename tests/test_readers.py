"""Each kind of file: what is read, what is refused."""

import concurrent.futures
import gc
import sys

import h5py
import numpy as np
import pytest

from kst_jax.data import volumes
from kst_jax.data.readers.npy import read_mask_bank
from kst_jax.data.sources import open_source
from kst_jax.data_config import Selection
from kst_jax.errors import InputError
from tests.scans import (
    CHANNELS,
    IMAGES,
    KSPACE,
    RNG,
    read_all,
    with_nan,
    write_h5,
    write_npy,
)

# --- fastMRI ---


@pytest.mark.parametrize("patient", ["p7", b"p7", None])
def test_fastmri(tmp_path, patient):
    write_h5(
        tmp_path / "scan.h5", **({} if patient is None else {"patient_id": patient})
    )
    slices = read_all(tmp_path / "scan.h5")
    for index, (found, image) in enumerate(zip(slices, IMAGES, strict=True)):
        np.testing.assert_allclose(found.image, image, atol=1e-6)
        assert found.image.dtype == np.complex64
        assert (found.volume, found.index, found.measured) == ("scan", index, True)
        assert found.subject == ("p7" if patient else "scan")


def test_fastmri_agrees_with_the_reconstruction_that_comes_with_a_scan(shared):
    path = shared / "data/brain_vfa_singlecoil.h5"
    with h5py.File(path) as file:
        expected = file["reconstruction_esc"][()]
    slices = read_all(path)
    found = np.abs(np.stack([s.image for s in slices]))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert {s.subject for s in slices} == {"pyqmri-vfa"}
    assert slices[0].measured


CHUNKS = {
    "a slice": (1, 6, 5),
    "rows": (1, 2, 5),
    "columns": (1, 6, 2),
    "pieces of a slice that do not divide it": (1, 4, 3),
    "several slices": (3, 6, 5),
    "everything": (4, 6, 5),
    "pieces of several slices": (3, 4, 2),
    "points": (1, 1, 1),
    "whatever h5py chooses": True,
}
PACKINGS = {
    "plain": {},
    "gzip": {"compression": "gzip"},
    "gzip as tight as can be": {"compression": "gzip", "compression_opts": 9},
    "lzf": {"compression": "lzf"},
    "shuffle": {"shuffle": True},
    "fletcher32": {"fletcher32": True},
    "gzip, shuffle, fletcher32": {
        **{"compression": "gzip", "shuffle": True, "fletcher32": True}
    },
    "lzf, shuffle, fletcher32": {
        **{"compression": "lzf", "shuffle": True, "fletcher32": True}
    },
    "resizable": {"maxshape": (None, None, None)},
    "resizable gzip": {"maxshape": (None, 6, 5), "compression": "gzip"},
}


def write_chunked(path, kspace=KSPACE, libver="earliest", **options):
    with h5py.File(path, "w", libver=libver) as file:
        file.create_dataset("kspace", data=kspace, **options)


@pytest.mark.parametrize("packing", PACKINGS)
@pytest.mark.parametrize("chunks", CHUNKS)
def test_chunked_fastmri_is_read_as_written(tmp_path, chunks, packing):
    write_h5(tmp_path / "plain.h5")
    plain = [found.image for found in read_all(tmp_path / "plain.h5")]
    for libver in ("earliest", "latest"):  # which index their chunks differently
        path = tmp_path / f"{libver}.h5"
        write_chunked(path, libver=libver, chunks=CHUNKS[chunks], **PACKINGS[packing])
        found = [found.image for found in read_all(path)]
        np.testing.assert_array_equal(found, plain)


def test_chunks_that_do_not_compress(tmp_path):
    """Noise in every bit: gzip and lzf leave some or all of it unpacked."""
    bits = np.random.default_rng(0).integers(0, 2**23, (2, 2, 64, 64), np.uint32)
    real, imaginary = (bits | 0x3F800000).view(np.float32)
    kspace = real + 1j * imaginary
    write_h5(tmp_path / "plain.h5", kspace)
    for packing in ("gzip", "lzf"):
        write_chunked(tmp_path / "a.h5", kspace, chunks=True, compression=packing)
        for one, other in zip(
            *(read_all(tmp_path / name) for name in ("plain.h5", "a.h5")), strict=True
        ):
            np.testing.assert_array_equal(one.image, other.image)


def test_fastmri_that_was_resized(tmp_path):
    write_h5(tmp_path / "plain.h5", KSPACE[:3])
    write_chunked(tmp_path / "a.h5", chunks=(1, 4, 3), maxshape=(None, 6, 5))
    with h5py.File(tmp_path / "a.h5", "a") as file:
        file["kspace"].resize((3, 6, 5))
    one, other = (read_all(tmp_path / name) for name in ("plain.h5", "a.h5"))
    np.testing.assert_array_equal([s.image for s in other], [s.image for s in one])


def write_with_filters(path, *names):
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk((1, 6, 5))
    for name in names:
        getattr(created, f"set_{name}")(*([4] if name == "deflate" else []))
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple(KSPACE.shape)
        kind = h5py.h5t.py_create(KSPACE.dtype, logical=True)
        dataset = h5py.h5d.create(file.id, b"kspace", kind, space, created)
        h5py.Dataset(dataset)[:] = KSPACE


def test_a_checksum_before_compression_as_pytables_writes_it(tmp_path):
    write_with_filters(tmp_path / "a.h5", "fletcher32", "shuffle", "deflate")
    write_h5(tmp_path / "plain.h5")
    one, other = (read_all(tmp_path / name) for name in ("plain.h5", "a.h5"))
    np.testing.assert_array_equal([s.image for s in other], [s.image for s in one])


def write_links(path, make_link):
    write_h5(path.with_name("other.hdf"))
    with h5py.File(path, "w") as file:
        file["kspace"] = make_link(path.with_name("other.hdf"))


def write_virtual(path):
    write_h5(path.with_name("other.hdf"))
    layout = h5py.VirtualLayout(KSPACE.shape, "c8")
    layout[:] = h5py.VirtualSource(path.with_name("other.hdf"), "kspace", KSPACE.shape)
    with h5py.File(path, "w") as file:
        file.create_virtual_dataset("kspace", layout)


def write_dataset(path, name="kspace", data=None, **options):
    with h5py.File(path, "w") as file:
        dataset = file.create_dataset(name, **options)
        if data is not None:
            dataset[0, 0, 0] = data


def write_filtered(path):
    created = h5py.h5p.create(h5py.h5p.DATASET_CREATE)
    created.set_chunk(KSPACE.shape)
    created.set_filter(307, h5py.h5z.FLAG_OPTIONAL, ())  # bzip2, by a plugin
    with h5py.File(path, "w") as file:
        space = h5py.h5s.create_simple(KSPACE.shape)
        kind = h5py.h5t.py_create(KSPACE.dtype)
        dataset = h5py.h5d.create(file.id, b"kspace", kind, space, created)
        dataset.write_direct_chunk((0, 0, 0), KSPACE.tobytes(), 1)


def write_masked(path):
    write_h5(path)
    with h5py.File(path, "a") as file:
        file["mask"] = np.zeros(5)


BAD_H5 = {
    "its content is a web page": lambda p: p.write_text("<html>log in first</html>"),
    "not an HDF5 file": lambda p: p.write_text("some text"),
    "has no dataset 'kspace', only .'image'.": lambda p: write_dataset(
        p, "image", shape=(2, 2), dtype="f4"
    ),
    "is a group": lambda p: write_dataset(p, "kspace/deep", shape=(2, 2), dtype="f4"),
    r"shape \(6, 5\)": lambda p: write_h5(p, KSPACE[0]),
    r"shape \(\)": lambda p: write_h5(p, 1j),
    "shape None": lambda p: write_h5(p, h5py.Empty("c8")),
    "float32, not complex": lambda p: write_h5(p, np.abs(KSPACE)),
    r"\(0, 6, 5\) is empty": lambda p: write_h5(p, KSPACE[:0]),
    r"\(1048576, 9, 9\) is empty": lambda p: write_dataset(
        p, shape=(2**20, 9, 9), dtype="c8", chunks=(1, 9, 9)
    ),
    "65536 slices": lambda p: write_dataset(
        p, data=1, shape=(2**20, 9, 9), dtype="c8", chunks=(1, 9, 9)
    ),
    "67108864 points": lambda p: write_dataset(
        p, data=1, shape=(1, 2**20, 2**20), dtype="c8", chunks=(1, 9, 9)
    ),
    "4 chunks, but only 1 are stored": lambda p: write_dataset(
        p, data=1, shape=(4, 6, 5), dtype="c8", chunks=(1, 6, 5)
    ),
    "filters that are not read": write_filtered,
    # What is packed cannot be looked into before HDF5 unpacks it.
    r"not read \(numbers \[1, 2\]": lambda p: write_with_filters(
        p, "deflate", "shuffle"
    ),
    r"not read \(numbers \[1, 1\]": lambda p: write_with_filters(
        p, "deflate", "deflate"
    ),
    "slice 2 holds values that are not finite": lambda p: write_h5(
        p, with_nan(KSPACE, 2)
    ),
    "slice 0 holds values that": lambda p: write_h5(p, KSPACE.astype("c16") * 1e99),
    "holds a 'mask'": write_masked,
    "is a link": lambda p: write_links(p, lambda q: h5py.ExternalLink(q, "kspace")),
    "'kspace' is a link": lambda p: write_links(p, lambda q: h5py.SoftLink("/kspace")),
    "in other files": write_virtual,
    "keeps its values in other": lambda p: write_dataset(
        p, shape=(1, 6, 5), dtype="c8", external=[(p.with_suffix(".raw"), 0, 240)]
    ),
}


@pytest.mark.parametrize("cause", BAD_H5)
def test_bad_fastmri(tmp_path, cause):
    BAD_H5[cause](tmp_path / "bad.h5")
    with pytest.raises(InputError, match=f"bad.h5.*{cause}"):
        read_all(tmp_path / "bad.h5")


def test_scans_of_several_coils_are_read_as_measured(shared):
    path = shared / "data/brain_vfa_multicoil.h5"
    volume = volumes.open_scan(path, Selection())
    assert (volume.coils, volume.shape, volume.depth) == (13, (224, 224), 3)
    with h5py.File(path) as file:
        wanted = file["kspace"][1]
    np.testing.assert_array_equal(volume.sample(1).kspace, wanted)


def test_one_coil_on_an_axis_of_its_own_is_one_coil(tmp_path):
    write_h5(tmp_path / "a.h5", KSPACE[:, None])
    found = read_all(tmp_path)
    for item, image in zip(found, IMAGES, strict=True):
        np.testing.assert_allclose(item.image, image, atol=1e-5)


# --- the authors' arrays ---


@pytest.mark.parametrize("array", [CHANNELS, CHANNELS.astype("f8"), KSPACE])
def test_npy(tmp_path, array):
    write_npy(tmp_path / "train_kspace.npy", array)
    slices = read_all(tmp_path)
    np.testing.assert_allclose([s.image for s in slices], IMAGES, atol=1e-6)
    assert [s.index for s in slices] == [0, 1, 2, 3]
    assert {(s.subject, s.measured) for s in slices} == {("train_kspace", False)}


@pytest.fixture
def busy_threads():
    """Threads that change places within numpy's parsing of a header, as JAX's do."""

    def collected(*_):
        return [None for _ in range(50)]

    before = gc.get_threshold(), sys.getswitchinterval()
    gc.set_threshold(10)
    gc.callbacks.append(collected)
    sys.setswitchinterval(1e-6)
    yield
    gc.callbacks.remove(collected)
    gc.set_threshold(*before[0])
    sys.setswitchinterval(before[1])


@pytest.mark.usefixtures("busy_threads")
def test_npy_in_threads(tmp_path):
    write_npy(tmp_path / "a.npy")
    source = open_source(str(tmp_path))
    with concurrent.futures.ThreadPoolExecutor(8) as pool:
        for found in pool.map(lambda n: source[n % 4].image, range(1500)):
            assert found.shape == (6, 5)


BAD_NPY = {
    "its content is a web page": lambda p: p.write_text("<html>log in first</html>"),
    "its content is empty": lambda p: p.write_bytes(b""),
    "not a readable .npy": lambda p: p.write_text("some text"),
    "complete": lambda p: (write_npy(p), p.write_bytes(p.read_bytes()[:-9])),
    "multi-line statement": lambda p: (
        write_npy(p),
        p.write_bytes(p.read_bytes().replace(b"}", b" ")),
    ),
    "Python objects": lambda p: np.save(p, np.array([{}, None]), allow_pickle=True),
    r"\(0, 6, 5, 2\)": lambda p: write_npy(p, CHANNELS[:0]),
    r"float32 of shape \(4, 6, 5\)": lambda p: write_npy(p, CHANNELS[..., 0]),
    "bool of shape": lambda p: write_npy(p, np.ones((4, 6, 5), bool)),
    r"shape \(\)": lambda p: write_npy(p, np.float32(1)),
    # files with nothing in them
    r"\(1, 8192, 8193\) means more than": lambda p: sparse(p, "c8", (1, 8192, 8193)),
    r"\(1, 8192, 8193, 2\) means": lambda p: sparse(p, "f4", (1, 8192, 8193, 2)),
    "slice 3 holds": lambda p: write_npy(p, with_nan(CHANNELS, 3)),
    "slice 0 holds": lambda p: write_npy(p, CHANNELS.astype("f8") * 1e99),
}


def sparse(path, dtype, shape):
    np.lib.format.open_memmap(path, "w+", dtype, shape)


@pytest.mark.parametrize("cause", BAD_NPY)
def test_bad_npy(tmp_path, cause):
    BAD_NPY[cause](tmp_path / "bad.npy")
    with pytest.raises(InputError, match=f"bad.npy.*{cause}"):
        read_all(tmp_path / "bad.npy")


@pytest.mark.parametrize("dtype", [bool, "u1", "f4"])
def test_mask_bank(tmp_path, dtype):
    masks = RNG.uniform(size=(3, 6, 5)) < 0.5
    np.save(tmp_path / "masks.npy", masks.astype(dtype))
    found = read_mask_bank(tmp_path / "masks.npy")
    assert found.dtype == bool
    np.testing.assert_array_equal(found, masks)


@pytest.mark.parametrize(
    ("bank", "cause"),
    [
        (np.ones((6, 5), bool), r"\(6, 5\)"),
        (np.full((3, 6, 5), 2), "besides 0 and 1"),
        (np.full((3, 6, 5), "a"), "besides 0 and 1"),
        (
            np.eye(3, dtype=bool)[:, :, None] & [[True], [True], [False]],
            "mask 2 has no",
        ),
    ],
)
def test_bad_mask_bank(tmp_path, bank, cause):
    np.save(tmp_path / "masks.npy", bank)
    with pytest.raises(InputError, match=f"masks.npy.*{cause}"):
        read_mask_bank(tmp_path / "masks.npy")
