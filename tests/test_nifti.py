"""NIfTI and Analyze volumes: how they lie, what stays decoded, what is refused."""

import gzip
import os
import tracemalloc

import nibabel as nib
import numpy as np
import pytest
import scipy.io

from kst_jax.data.readers import nifti
from kst_jax.data.sources import open_source
from kst_jax.data_config import Selection
from kst_jax.errors import InputError
from tests.scans import (
    VOLUME,
    read_all,
    with_nan,
    write_nifti,
)


def scan_in_world(axes):
    """A volume whose voxels hold their place: 1 + x + 10 y + 100 z, from 0 each."""
    affine = np.zeros((4, 4))
    affine[3, 3] = 1
    shape = [0, 0, 0]
    for stored, letter in enumerate(axes):
        world = next(w for w, pair in enumerate(("RL", "AP", "SI")) if letter in pair)
        shape[stored] = (4, 5, 6)[world]
        affine[world, stored] = 1 if letter in "RAS" else -1
        affine[world, 3] = 0 if letter in "RAS" else shape[stored] - 1
    ijk = np.indices(shape).reshape(3, -1)
    x, y, z = affine[:3, :3] @ ijk + affine[:3, 3:]
    return (1 + x + 10 * y + 100 * z).reshape(shape), affine


@pytest.mark.parametrize("axes", ["RAS", "LIA", "LPS", "ASR", "PIL"])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_slices_are_laid_out_by_the_affine(tmp_path, axes, suffix):
    volume, affine = scan_in_world(axes)
    oblique = affine.copy()
    oblique[:3, :3] = nib.eulerangles.euler2mat(0.1, 0.1, 0.1) @ affine[:3, :3] * 1.5
    write_nifti(tmp_path / f"a{suffix}", volume.astype("f4"), oblique)
    x, y, z = np.arange(4), np.arange(5), np.arange(6)
    expected = {  # anterior or superior is the top row; right or anterior comes last
        "axial": lambda k: 1 + x + 10 * y[::-1, None] + 100 * k,
        "coronal": lambda k: 1 + x + 10 * k + 100 * z[::-1, None],
        "sagittal": lambda k: 1 + k + 10 * y + 100 * z[::-1, None],
    }
    for plane, image in expected.items():
        slices = read_all(tmp_path / f"a{suffix}", plane=plane, min_foreground=0)
        assert len(slices) == {"axial": 6, "coronal": 5, "sagittal": 4}[plane]
        for found in slices:
            np.testing.assert_array_equal(found.image, image(found.index))
            assert found.image.dtype == np.complex64
            assert not found.measured


def test_analyze_pair_has_its_first_axis_from_right_to_left(tmp_path):
    volume, _ = scan_in_world("RAS")
    stored = volume[::-1, :, :, None].astype(">i2")
    nib.save(nib.AnalyzeImage(stored, None), tmp_path / "OAS1_0001_MR1.hdr")
    for path in (tmp_path, tmp_path / "OAS1_0001_MR1.img"):
        slices = read_all(path, plane="coronal", min_foreground=0)
        assert [s.subject for s in slices] == ["OAS1_0001"] * 5
        np.testing.assert_array_equal(slices[2].image, volume[:, 2, ::-1].T)
    (tmp_path / "OAS1_0001_MR1.img").unlink()
    with pytest.raises(InputError, match=r"OAS1_0001_MR1\.img"):
        open_source(str(tmp_path))


def test_scale_factors_are_applied(tmp_path):
    image = nib.Nifti1Image((VOLUME * 10).astype("i2"), np.eye(4))
    image.header.set_slope_inter(0.1, 3)
    nib.save(image, tmp_path / "a.nii")
    found = read_all(tmp_path / "a.nii")[2].image
    np.testing.assert_allclose(found, VOLUME[:, ::-1, 2].T + 3, atol=0.1)


def test_empty_slices_are_left_out(tmp_path):
    volume = VOLUME.copy()
    volume[:, :, 0] = 0
    volume[:, :, 3] *= 0.01
    volume[1:, :, 5] = 0
    write_nifti(tmp_path / "a.nii", volume)
    indices = {
        m: [s.index for s in read_all(tmp_path, min_foreground=m)]
        for m in (0, 0.05, 0.3)
    }
    assert indices == {
        0: [0, 1, 2, 3, 4, 5, 6],
        0.05: [1, 2, 4, 5, 6],
        0.3: [1, 2, 4, 6],
    }


@pytest.mark.parametrize("name", ["a.nii", "a.nii.gz"])
def test_rewritten_volume_is_read_anew(tmp_path, name):
    write_nifti(tmp_path / name)
    before = read_all(tmp_path)[0].image
    write_nifti(tmp_path / name, VOLUME * 2)
    np.testing.assert_array_equal(read_all(tmp_path)[0].image, before * 2)


def test_volumes_are_decoded_once_however_their_slices_are_drawn(tmp_path, monkeypatch):
    for number in range(5):
        write_nifti(tmp_path / f"{number}.nii.gz", VOLUME + number)
    source = open_source(str(tmp_path), Selection())
    # Any way of reading a file goes by its header.
    monkeypatch.setattr(nifti, "load", lambda path: pytest.fail(f"{path} again"))
    depth = len(source) // 5
    drawn = [source[depth * number].image for _ in range(3) for number in range(5)]
    np.testing.assert_array_equal(drawn[4], drawn[0] + 4)
    kept = nifti._decode.cache  # bounded by bytes, not by a number of volumes
    assert kept.currsize == sum(volume.nbytes for volume in kept.values())


@pytest.mark.parametrize("plane", nifti.PLANES)
@pytest.mark.parametrize("axes", ["RAS", "LIA", "PSR"])
@pytest.mark.parametrize("dtype", ["f4", ">f8", "i2", "u1"])
def test_slices_of_an_unpacked_file_are_those_of_a_compressed_one(
    tmp_path, plane, axes, dtype
):
    volume, affine = scan_in_world(axes)
    image = nib.Nifti1Image(volume[..., None].astype(dtype), affine)
    image.header.set_slope_inter(0.1, 0.7)
    for name in ("a.nii", "b.nii.gz"):
        image.to_filename(tmp_path / name)
    options = {"plane": plane, "min_foreground": 0}
    one, other = (read_all(tmp_path / n, **options) for n in ("a.nii", "b.nii.gz"))
    for a, b in zip(one, other, strict=True):
        assert a.index == b.index
        np.testing.assert_array_equal(a.image, b.image)


def test_a_slice_of_an_unpacked_file_does_not_read_the_others(tmp_path):
    nifti._decode.cache.clear()
    write_nifti(tmp_path / "a.nii", np.tile(VOLUME, (16, 16, 16)))
    source = open_source(str(tmp_path / "a.nii"))
    tracemalloc.start()
    image = source[0].image
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 4 * image.nbytes
    assert not nifti._decode.cache.currsize


def test_an_unpacked_file_that_changes_under_an_open_source(tmp_path):
    path = tmp_path / "a.nii"
    write_nifti(path)
    source = open_source(str(path))
    path.write_bytes(path.read_bytes()[:-100])
    with pytest.raises(InputError, match=r"a\.nii: cannot be read"):
        source[0]
    write_nifti(path, with_nan(VOLUME, slice(None)))
    with pytest.raises(InputError, match=r"a\.nii: holds values that are not finite"):
        source[0]


@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_volumes_keep_no_file_open(tmp_path, suffix):
    for number in range(20):
        write_nifti(tmp_path / f"{number}{suffix}")
    before = len(os.listdir("/dev/fd"))
    source = open_source(str(tmp_path), Selection())
    assert [source[number].index for number in range(len(source))]
    assert len(os.listdir("/dev/fd")) < before + 10


def write_header(path, **fields):
    write_nifti(path)
    data = bytearray(path.read_bytes())
    header = nib.Nifti1Header(bytes(data[:348]), check=False)
    for name, value in fields.items():
        header[name] = value
    data[:348] = header.binaryblock
    path.write_bytes(data)


def write_truncated(path):
    write_nifti(path.with_suffix(".nii"))
    path.write_bytes(gzip.compress(path.with_suffix(".nii").read_bytes())[:-20])
    path.with_suffix(".nii").unlink()


BAD_NIFTI = {
    "its content is a web page": lambda p: p.write_text("<html>log in first</html>"),
    "its content is empty": lambda p: p.write_bytes(b""),
    "no header of NIfTI": lambda p: p.write_text("some text"),
    "could the file be damaged": lambda p: write_header(p, bitpix=64, datatype=64),
    r"shape \(5, 6, 7, 2\).* Split series": lambda p: write_nifti(
        p, np.stack([VOLUME, VOLUME], -1)
    ),
    r"shape \(5, 6, 7, 1, 2\).* Split series": lambda p: write_nifti(
        p, np.stack([VOLUME, VOLUME], -1)[:, :, :, None]
    ),
    r"shape \(5, 6\)": lambda p: write_nifti(p, VOLUME[..., 0]),
    "-7": lambda p: write_header(p, dim=[3, 5, 6, -7, 1, 1, 1, 1]),
    "complex64, not real": lambda p: write_nifti(p, VOLUME.astype("c8")),
    "'R'.*, not real": lambda p: write_nifti(
        p, np.zeros((5, 6, 7), [("R", "u1"), ("G", "u1"), ("B", "u1")])
    ),
    "not finite": lambda p: write_nifti(p, with_nan(VOLUME, (1, 2, 3))),
    "are not finite": lambda p: write_nifti(p, VOLUME.astype("f8") * 1e99),
    "blank": lambda p: write_nifti(p, VOLUME * 0),
    "does not give the directions": lambda p: write_header(
        p, sform_code=1, srow_x=0, srow_y=0, srow_z=0
    ),
    "affine does not give": lambda p: write_header(p, sform_code=1, srow_x=np.nan),
    "claims the shape": lambda p: write_header(p, dim=[3, 900, 900, 900, 1, 1, 1, 1]),
    "a file of": lambda p: write_header(p, dim=[3, 600, 600, 600, 1, 1, 1, 1]),
}


@pytest.mark.parametrize("cause", BAD_NIFTI)
def test_bad_nifti(tmp_path, cause):
    BAD_NIFTI[cause](tmp_path / "bad.nii")
    with pytest.raises(InputError, match=f"bad.nii.*{cause}"):
        read_all(tmp_path / "bad.nii")


def test_truncated_gzip(tmp_path):
    write_truncated(tmp_path / "bad.nii.gz")
    with pytest.raises(InputError, match="EOFError"):
        read_all(tmp_path)


def members(data, count):
    """A gzip file of several streams, as `cat` and parallel compressors make it."""
    size = -(-len(data) // count)
    parts = [data[start : start + size] for start in range(0, len(data), size)]
    return b"".join(map(gzip.compress, parts))


def flipped(data, place, bits=255):
    data = bytearray(data)
    data[place] ^= bits
    return bytes(data)


# Changes that leave every value readable, but for the last.
DAMAGE = {
    "wrong checksum": lambda raw: flipped(gzip.compress(raw), -6),
    "wrong length": lambda raw: flipped(gzip.compress(raw), -2),
    "checksum cut off": lambda raw: gzip.compress(raw)[:-8],
    "length cut off": lambda raw: gzip.compress(raw)[:-1],
    "wrong checksum of the last stream": lambda raw: flipped(members(raw, 3), -6),
    "wrong checksum after the values": lambda raw: flipped(
        members(raw, 1) + gzip.compress(bytes(1000)), -6
    ),
    "another value": lambda raw: flipped(gzip.compress(raw, 0), 600, 1),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_damaged_gzip(tmp_path, damage):
    write_nifti(tmp_path / "raw.nii")
    raw = (tmp_path / "raw.nii").read_bytes()
    (tmp_path / "bad.nii.gz").write_bytes(DAMAGE[damage](raw))
    with pytest.raises(InputError, match=r"bad\.nii\.gz: cannot be read .*copy"):
        open_source(str(tmp_path / "bad.nii.gz"))


@pytest.mark.parametrize("count", [1, 2, 7])
@pytest.mark.parametrize("padding", [0, 700])
def test_gzip_of_several_streams_and_padding(tmp_path, count, padding):
    write_nifti(tmp_path / "a.nii")
    raw = (tmp_path / "a.nii").read_bytes()
    (tmp_path / "b.nii.gz").write_bytes(members(raw, count) + bytes(padding))
    one, other = (read_all(tmp_path / name) for name in ("a.nii", "b.nii.gz"))
    np.testing.assert_array_equal([s.image for s in other], [s.image for s in one])


def test_what_follows_the_values_is_not_read_without_end(tmp_path, monkeypatch):
    monkeypatch.setattr(nifti, "_MAX_DECODED_BYTES", 2**21)
    write_nifti(tmp_path / "a.nii")
    raw = (tmp_path / "a.nii").read_bytes()
    path = tmp_path / "b.nii.gz"
    path.write_bytes(gzip.compress(raw + bytes(2**20)))
    assert read_all(path)
    path.write_bytes(gzip.compress(raw + bytes(2**22)))
    with pytest.raises(InputError, match=r"b\.nii\.gz: more than 2097152 bytes follow"):
        read_all(path)


@pytest.mark.parametrize("axes", [1, 2, 4])
@pytest.mark.parametrize("suffix", [".nii", ".nii.gz"])
def test_trailing_axes_of_length_1(tmp_path, axes, suffix):
    write_nifti(tmp_path / "a.nii")
    write_nifti(tmp_path / f"b{suffix}", VOLUME.reshape(*VOLUME.shape, *[1] * axes))
    one, other = (read_all(tmp_path / name) for name in ("a.nii", f"b{suffix}"))
    np.testing.assert_array_equal([s.image for s in other], [s.image for s in one])


def test_negative_values_are_kept_and_warned_of_once(tmp_path, capsys):
    write_nifti(tmp_path / "positive.nii")
    assert len(read_all(tmp_path)) == 7
    assert not capsys.readouterr().err
    for name in ("b.nii", "c.nii.gz"):
        write_nifti(tmp_path / name, VOLUME - 75)
    slices = read_all(tmp_path, min_foreground=0)
    for found in slices[:14]:
        expected = VOLUME[:, ::-1, found.index].T - 75
        np.testing.assert_array_equal(found.image, expected)
    (warning,) = capsys.readouterr().err.splitlines()
    low, high = (VOLUME - 75).min(), (VOLUME - 75).max()
    assert f"b.nii: holds negative values ({low:.3g} to {high:.3g})" in warning
    assert "So do 1 more" in warning


@pytest.mark.parametrize(
    "names",
    [
        ("a.HDR", "a.IMG"),
        ("a.hdr", "a.IMG"),
        ("a.HDR", "a.img"),
        ("a.Hdr", "a.iMg"),
        ("a.Nii",),
        ("a.NII",),
        ("a.NII.GZ",),
        ("a.nii.GZ",),
    ],
)
def test_suffixes_in_any_case(tmp_path, names):
    for folder in ("given", "plain"):
        (tmp_path / folder).mkdir()
    plain = [tmp_path / "plain" / name.lower() for name in names]
    if len(names) == 2:
        nib.save(nib.Nifti1Pair(VOLUME, np.eye(4)), plain[0])
    else:
        write_nifti(plain[0])
    for path, name in zip(plain, names, strict=True):
        (tmp_path / "given" / name).write_bytes(path.read_bytes())
    expected = [VOLUME[:, ::-1, index].T for index in range(7)]
    for path in ("given", *(f"given/{name}" for name in names)):
        slices = read_all(tmp_path / path)
        np.testing.assert_array_equal([s.image for s in slices], expected)
        assert {s.volume for s in slices} == {"a"}


def write_matlab(path, **values):
    scipy.io.savemat(path, values, appendmat=False)


NO_AFFINES = {
    "FSL's registration": lambda p: np.savetxt(p, np.diag([-1.0, 1, 1, 1])),
    "a long text": lambda p: p.write_text("1 0 0 0\n" * 20_000),
    "nothing": lambda p: p.write_bytes(b""),
    "other variables": lambda p: write_matlab(p, results=np.ones(5)),
    "a matrix of another shape": lambda p: write_matlab(p, M=np.ones((2, 3))),
}


@pytest.mark.parametrize("content", NO_AFFINES)
def test_what_lies_beside_a_pair_and_is_not_spms_is_not_read(tmp_path, content):
    volume, _ = scan_in_world("RAS")
    nib.save(nib.AnalyzeImage(volume.astype("i2"), None), tmp_path / "a.hdr")
    alone = [s.image for s in read_all(tmp_path, min_foreground=0)]
    NO_AFFINES[content](tmp_path / "a.mat")
    found = [s.image for s in read_all(tmp_path, min_foreground=0)]
    np.testing.assert_array_equal(found, alone)


@pytest.mark.parametrize("version", ["4", "5"])
def test_spms_affine_is_read(tmp_path, version):
    volume, affine = scan_in_world("PIL")
    nib.save(nib.AnalyzeImage(volume.astype("i2"), None), tmp_path / "a.hdr")
    first = np.eye(4)
    first[:3, 3] = -1  # MATLAB counts voxels from 1
    scipy.io.savemat(tmp_path / "a.mat", {"mat": affine @ first}, format=version)
    slices = read_all(tmp_path / "a.hdr", min_foreground=0)
    x, y = np.arange(4), np.arange(5)
    for found in slices:
        expected = 1 + x + 10 * y[::-1, None] + 100 * found.index
        np.testing.assert_array_equal(found.image, expected)


def test_an_affine_of_spm_that_is_damaged_is_to_blame(tmp_path):
    nib.save(nib.AnalyzeImage(VOLUME, None), tmp_path / "a.hdr")
    write_matlab(tmp_path / "a.mat", M=np.eye(4))
    data = (tmp_path / "a.mat").read_bytes()
    (tmp_path / "a.mat").write_bytes(data[:150])
    with pytest.raises(InputError, match=r"a\.mat: lies beside a scan, but cannot be"):
        open_source(str(tmp_path))


@pytest.mark.parametrize("name", ["s1", "colin27", "aomic_sub-0017"])
def test_real_volumes(shared, name):
    path = shared / f"data/{name}_t1w.nii.gz"
    canonical = nib.as_closest_canonical(nib.load(path)).get_fdata(dtype=np.float32)
    source = open_source(str(path))
    assert 0.6 * canonical.shape[2] < len(source) <= canonical.shape[2]
    found = source[len(source) // 2]
    expected = canonical[:, ::-1, found.index].T
    np.testing.assert_array_equal(found.image, expected)
