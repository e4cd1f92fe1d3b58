"""What is found in one file: what it is, what is wrong with it, what it takes."""

import dataclasses
import gzip
import shutil
import tracemalloc

import h5py
import nibabel as nib
import numpy as np
import pytest

from kst_jax.data import volumes
from kst_jax.data.contents import content_of
from kst_jax.data.fourier import fft2c
from kst_jax.data.sources import open_source
from kst_jax.data_config import CoilsConfig, DataConfig, Selection
from kst_jax.doctor.examination import examine, examine_others, patient_of
from kst_jax.errors import InputError
from tests import fastmri_files, test_bart
from tests.scans import with_nan, write_h5, write_nifti, write_npy

DATA = DataConfig(size=(16, 16))
ROWS, COLUMNS = np.mgrid[-1:1:20j, -1:1:18j]
# Blobs off the centre: k-space with a peak and a phase.
IMAGES = np.stack(
    [(n + 1) * np.exp(-3 * ((ROWS - 0.2) ** 2 + COLUMNS**2)) for n in range(6)]
).astype("c8")
KSPACE = fft2c(IMAGES)
VOLUME = np.moveaxis(np.abs(IMAGES), 0, 2)


def blank(*numbers):
    kspace = KSPACE.copy()
    kspace[list(numbers)] = 0
    return kspace


def findings(path, level=None, data=DATA, **selection):
    found = examine(path, data, Selection(**selection)).findings
    return [f.what for f in found if level in (None, f.level)]


def test_measured_scans(tmp_path):
    write_h5(tmp_path / "a.h5", KSPACE, patient_id="p7")
    found = examine(tmp_path / "a.h5", DATA, Selection(drop_first=1))
    assert patient_of(found.path) == "p7"
    assert (found.kind, found.stored) == ("HDF5", (6, 20, 18))
    assert (found.dtype, found.coils, found.measured) == ("complex64", 1, True)
    assert (found.slices, found.depth, found.sizes) == (5, 6, [(20, 18)])
    assert found.low == pytest.approx(np.abs(IMAGES[1:]).min(), abs=1e-6)
    assert found.high == pytest.approx(np.abs(IMAGES[1:]).max(), rel=1e-6)
    assert found.holding == 5 * 20 * 18 * 8
    assert not found.findings


@pytest.mark.parametrize(("axes", "flips"), [("RAS", (1, 1, 1)), ("LPS", (-1, -1, 1))])
def test_volumes(tmp_path, axes, flips):
    write_nifti(tmp_path / "sub-3.nii.gz", VOLUME, np.diag([*flips, 1]))
    found = examine(tmp_path / "sub-3.nii.gz", DATA, Selection())
    assert (found.coils, found.measured) == (None, False)
    assert (found.orientation, found.stored) == (axes, (20, 18, 6))
    assert found.sizes == [(18, 20)]
    assert not found.findings


def test_an_orientation_that_the_file_does_not_tell_is_said_to_be_assumed(tmp_path):
    nib.save(nib.AnalyzeImage(VOLUME, None), tmp_path / "a.hdr")
    found = examine(tmp_path / "a.hdr", DATA, Selection())
    assert found.orientation == "LAS assumed"
    assert [f.level for f in found.findings] == ["note"]


def test_multi_coil_scans_show_their_coils(tmp_path):
    write_h5(tmp_path / "a.h5", np.stack([KSPACE] * 3, 1))
    found = examine(tmp_path / "a.h5", DATA, Selection())
    assert (found.coils, found.stored, found.slices) == (3, (6, 3, 20, 18), None)
    assert "holds k-space of 3 coils. Set" in found.findings[0].what
    data = dataclasses.replace(DATA, coils=CoilsConfig(count=2, calibration=12))
    found = examine(tmp_path / "a.h5", data, Selection())
    assert (found.slices, found.sizes, found.findings) == (6, [(20, 18)], [])


@pytest.mark.parametrize("layout", ["fastmri", "bart"])
def test_the_doctor_tells_how_coils_are_undersampled(layout, tmp_path):
    """Every third of 18 columns, and six in the middle: 10 of 18."""
    mask = np.arange(18) % 3 == 0
    mask[6:12] = True
    kspace = np.stack([KSPACE] * 3, 1) * mask
    if layout == "bart":
        path = test_bart.write(tmp_path / "a.cfl", kspace)
    else:
        path = tmp_path / "a.h5"
        with h5py.File(path, "w") as file:
            file["kspace"], file["mask"] = kspace, mask
    found = examine(path, DATA, Selection())
    assert found.findings[0].what == (
        "slice 3 has 200 of 360 points, 1.8x; 20 rows and 7 columns in the centre are "
        "complete."
    )
    assert found.findings[1].level == "error"


def write_columns(path, columns):
    """A scan of which only these columns are not zero; nothing else tells of them."""
    kspace = KSPACE * np.isin(np.arange(18), columns)
    write = {
        ".npy": write_npy,
        ".h5": write_h5,
        ".cfl": lambda path, kspace: test_bart.write(path, kspace[:, None]),
    }
    write[path.suffix](path, kspace)
    return path


@pytest.mark.parametrize("suffix", [".npy", ".h5", ".cfl"])
def test_zeros_that_show_undersampling_are_a_warning(tmp_path, suffix, capsys):
    first = write_columns(tmp_path / f"a{suffix}", [0, 2, 4, 7, 8, 9, 10, 13, 16])
    (what,) = findings(first, "warning")
    assert what.startswith("has columns of zeros among measured ones (7 in slice 3)")
    assert "--config.mask.kind=measured" in what
    assert "kst-reconstruct" in what
    other = write_columns(tmp_path / f"b{suffix}", range(18))
    assert not findings(other)
    for paths, undersampled, told in (
        (f"{first},{other}", False, True),
        (f"{first},{other}", True, False),
        (f"{other},{first}", False, False),  # runs look at the first scan alone
    ):
        open_source(paths, undersampled=undersampled)
        warned = capsys.readouterr().err
        assert warned.startswith(f"warning: {first}: {what} Only the first") == told
        assert ("zeros" in warned) == told


@pytest.mark.parametrize(
    ("columns", "missing"),
    [
        (range(3, 15), 0),  # about the centre, column 9
        (range(3, 16), 0),
        (range(3, 17), 0),
        (range(2, 15), 0),
        ([9], 0),
        ([*range(9), *range(10, 18)], 1),
        ([*range(3, 8), *range(9, 15)], 1),
        (range(6, 18), 3),  # partial Fourier
        (range(12), 5),
    ],
)
def test_padding_on_both_sides_is_no_undersampling(tmp_path, columns, missing):
    path = write_columns(tmp_path / "a.npy", columns)
    found = [f"({missing} in slice 3)" in what for what in findings(path, "warning")]
    assert found == [True] * (missing > 0)


def test_columns_that_the_header_calls_unmeasured_are_no_undersampling(tmp_path):
    images, columns = np.abs(IMAGES[:, :16, :16]), (0, 13)
    kspace = fastmri_files.measured(images, 18, columns)
    fastmri_files.write(tmp_path / "a.h5", kspace, (16, 16), columns)
    assert not findings(tmp_path / "a.h5")
    kspace[..., 4] = 0
    fastmri_files.write(tmp_path / "a.h5", kspace, (16, 16), columns)
    (what,) = findings(tmp_path / "a.h5", "warning")
    assert "(1 in slice 3)" in what


def test_slices_that_cannot_be_used_are_listed(tmp_path):
    path = tmp_path / "a.h5"
    write_h5(path, blank(1, 4))
    (what,) = findings(path, "error")
    assert what.startswith("2 slices (1, 4): every measured value is zero")
    assert not findings(path, "error", slices=(0.3, 0.5))
    write_h5(path, with_nan(KSPACE, 2))
    (what,) = findings(path, "error")
    assert what.startswith("slice 2: holds values that are not finite")


def test_a_crop_larger_than_the_image(tmp_path):
    write_h5(tmp_path / "a.h5", KSPACE)
    wide = dataclasses.replace(DATA, crop=(16, 19))
    (what,) = findings(tmp_path / "a.h5", "error", data=wide)
    assert "6 slices (0, 1, 2, 3, 4, 5): image (20, 18) is smaller than" in what
    padded = dataclasses.replace(wide, pad=True)
    assert not findings(tmp_path / "a.h5", data=padded)


@pytest.mark.parametrize("axes", [(1,), (2,), (1, 2)])
def test_kspace_that_is_not_centred(tmp_path, axes):
    write_npy(tmp_path / "a.npy", np.fft.ifftshift(KSPACE, axes))
    (what,) = findings(tmp_path / "a.npy", "warning")
    place = tuple(0 if axis in axes else n // 2 for axis, n in ((1, 20), (2, 18)))
    assert f"brightest point is {place}, not about (10, 9)" in what


def test_empty_slices_of_volumes_are_a_note(tmp_path):
    volume = VOLUME.copy()
    volume[..., :2] = 0
    write_nifti(tmp_path / "a.nii", volume)
    assert findings(tmp_path / "a.nii") == ["2 of 6 slices are left out as empty."]


CONTENTS = {
    "web page": b"  <!DOCTYPE html><html>",
    "Git LFS pointer": b"version https://git-lfs.github.com/spec/v1\n",
    "git-annex pointer": b"/annex/objects/MD5E-s11353021--5d41402abc4b2a76b9719.h5\n",
    "git-annex": b"../../.git/annex/objects/Xw/9K/MD5E-s1--5d41.nii/MD5E-s1--5d41.nii",
    "BART": b"# Dimensions\n128 128 1 8 1 1 1 1 1 1 1 1 1 1 1 1 \n",
    "PAR/REC": b"# === DATA DESCRIPTION FILE ======\n#\n# CAUTION - Investigational\n",
    "DICOM": bytes(128) + b"DICM" + bytes(300),
    "MATLAB": b"MATLAB 5.0 MAT-file",
    "zip": b"PK\3\4" + bytes(400),
    "empty": b"",
}


@pytest.mark.parametrize("content", CONTENTS)
@pytest.mark.parametrize("suffix", [".h5", ".npy", ".nii", ".hdr"])
def test_what_is_no_scan_is_recognised(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(CONTENTS[content])
    (what,) = findings(path, "error")
    assert f"is named {suffix}, but its content is" in what
    assert content in what
    with pytest.raises(InputError, match=f"its content is .*{content}"):
        open_source(str(path))


def test_scans_under_another_kinds_name(tmp_path):
    write_npy(tmp_path / "a.npy", KSPACE)
    write_h5(tmp_path / "a.h5", KSPACE)
    write_nifti(tmp_path / "a.nii", VOLUME)
    write_nifti(tmp_path / "a.nii.gz", VOLUME)
    for held in (".npy", ".h5", ".nii", ".nii.gz"):
        for named in {".npy", ".h5", ".nii", ".nii.gz"} - {held}:
            shutil.copy(tmp_path / f"a{held}", tmp_path / f"b{named}")
            (what,) = findings(tmp_path / f"b{named}", "error")
            assert what.startswith(f"is named {named}, but")
            assert f"end in {held}" in what


def test_what_runs_pass_over_in_silence(tmp_path):
    (tmp_path / "folder.npy").mkdir()
    write_h5(tmp_path / "a.hdf5", KSPACE)
    write_h5(tmp_path / "b.h5", KSPACE)
    (tmp_path / "notes.txt").write_text("no scan")
    (found,) = examine_others(tmp_path.iterdir())
    assert (found.path.name, found.kind) == ("a.hdf5", "HDF5")
    assert "is left out. Rename it to end in .h5 or .mrd if" in found.findings[0].what


@pytest.mark.parametrize(
    ("name", "kind", "remedy"),
    [
        ("T1.mgz", "MGH", "mri_convert"),
        ("a.nii.bz2", "bzip2", "bunzip2"),
        ("a.NII.XZ", "xz", "unxz"),
        ("a.mnc", "MINC", "mnc2nii"),
        ("a.img.gz", "gzip", "gunzip"),
        ("scan.par", "PAR/REC", "dcm2niix"),
        ("IM0001", "DICOM", "dcm2niix"),
    ],
)
def test_scans_in_other_formats_come_with_their_converter(tmp_path, name, kind, remedy):
    contents = {"DICOM": CONTENTS["DICOM"], "PAR/REC": CONTENTS["PAR/REC"]}
    (tmp_path / name).write_bytes(contents.get(kind, b"some bytes"))
    (found,) = examine_others([tmp_path / name])
    assert found.kind == kind
    (finding,) = found.findings
    assert finding.level == "warning"
    assert remedy in finding.what


def test_a_series_of_dicom_files_is_one_finding(tmp_path):
    for series in ("t1", "t2"):
        (tmp_path / series).mkdir()
        for number in range(30):
            (tmp_path / series / f"IM{number:04}").write_bytes(CONTENTS["DICOM"])
    examined = examine_others(sorted(tmp_path.rglob("IM*")))
    assert [found.path.parent.name for found in examined] == ["t1", "t2"]
    for found in examined:
        assert "so are 29 more of its folder. Convert" in found.findings[0].what


def test_negative_values_show_in_the_range_and_are_a_warning(tmp_path):
    shifted = (VOLUME - VOLUME.mean()) / VOLUME.std()
    write_nifti(tmp_path / "a.nii.gz", shifted)
    found = examine(tmp_path / "a.nii.gz", DATA, Selection(min_foreground=0))
    assert found.low == pytest.approx(shifted.min())
    assert found.high == pytest.approx(shifted.max())
    (finding,) = found.findings
    assert finding.level == "warning"
    assert f"({shifted.min():.3g} to {shifted.max():.3g})" in finding.what


def test_files_that_git_annex_did_not_fetch(tmp_path):
    path = tmp_path / "sub-01_T1w.nii.gz"
    path.symlink_to("../.git/annex/objects/Xw/9K/MD5E-s1--5d41/MD5E-s1--5d41.nii.gz")
    (what,) = findings(path, "error")
    assert "leads nowhere" in what
    assert "git annex get" in what


def test_a_gzip_file_that_is_damaged_at_once_is_no_surprise(tmp_path):
    (tmp_path / "a.nii.gz").write_bytes(gzip.compress(bytes(500))[:12])
    assert content_of(tmp_path / "a.nii.gz") == "gzip-compressed unknown"


# --- memory ---


@pytest.mark.parametrize(
    "name", ["a.h5", "a.npy", "pairs.npy", "a.nii.gz", "scaled.nii"]
)
def test_memory_to_decode_is_what_decoding_takes(tmp_path, name):
    rng = np.random.default_rng(0)
    volume = rng.uniform(50, 100, (12, 160, 150))
    path = tmp_path / name
    if name.endswith(".h5"):
        write_h5(path, volume.astype("c16"))
    elif name.endswith(".npy"):
        paired = np.stack([volume, volume], -1).astype("f4")
        write_npy(path, paired if name == "pairs.npy" else volume.astype("c8"))
    else:
        image = nib.Nifti1Image(volume.astype("i2"), np.eye(4))
        if name == "scaled.nii":
            image.header.set_slope_inter(0.1, 3)
        nib.save(image, path)
    expected = examine(path, DATA, Selection()).decoding
    tracemalloc.start()
    volumes.open_volume(path, Selection()).read(1)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 0.98 * peak < expected < 1.6 * peak
