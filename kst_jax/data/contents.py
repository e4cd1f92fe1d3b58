"""What a file holds, by its first bytes, and what to do if that is not a scan."""

import gzip
import zlib
from pathlib import Path

from kst_jax.errors import InputError

UNKNOWN = "unknown"
_GZIP = b"\x1f\x8b"
_GZIPPED = "gzip-compressed "
_HDF5, _NIFTI, _ANALYZE, _NPY = "HDF5", "NIfTI", "Analyze", "NumPy"
# What the readers take under each suffix.
_READABLE = {
    ".h5": (_HDF5,),
    ".mrd": (_HDF5,),
    ".cfl": (),  # values alone
    ".npy": (_NPY,),
    ".nii": (_NIFTI,),
    ".nii.gz": (_GZIPPED + _NIFTI,),
    ".hdr": (_ANALYZE, _NIFTI),
}
GET_ANNEXED = "Fetch the file itself with `git annex get` or `datalad get`."
_DCM2NIIX = "Convert the series to NIfTI, for example with dcm2niix."
# Other contents of files that are named like scans, and what to do about them.
_REMEDIES = {
    "empty": "Copy or download it again.",
    "a web page": "Log in where it comes from, then download it again.",
    "a Git LFS pointer": "Fetch the file itself with `git lfs pull`.",
    "a git-annex pointer": GET_ANNEXED,
    "DICOM": _DCM2NIIX,
    "PAR/REC": _DCM2NIIX,
    "a MATLAB file": "Store its k-space as .h5 or .npy.",
    "BART": "Copy its .cfl beside it.",
    "a zip archive": "Unpack it.",
    "Siemens twix": "Convert it to ISMRMRD with siemens_to_ismrmrd.",
}
_MRI_CONVERT = "Convert it to NIfTI with FreeSurfer's mri_convert."
_SLICER = "Convert it to NIfTI, for example with 3D Slicer."
# Scans that no reader takes, by the ends of their names: format and remedy.
_FOREIGN = {
    ".dcm": ("DICOM", _DCM2NIIX),
    ".mgz": ("MGH", _MRI_CONVERT),
    ".mgh": ("MGH", _MRI_CONVERT),
    ".mnc": ("MINC", "Convert it to NIfTI with mnc2nii."),
    ".head": ("AFNI", "Convert it to NIfTI with AFNI's 3dAFNItoNIFTI."),
    ".nrrd": ("NRRD", _SLICER),
    ".nhdr": ("NRRD", _SLICER),
    ".mha": ("MetaImage", _SLICER),
    ".mhd": ("MetaImage", _SLICER),
    ".nii.bz2": ("bzip2", "Unpack it with bunzip2."),
    ".nii.xz": ("xz", "Unpack it with unxz."),
    ".nii.zst": ("Zstandard", "Unpack it with unzstd."),
    ".nii.zip": ("zip", "Unpack it."),
    ".img.gz": ("gzip", "Unpack it and its .hdr.gz with gunzip."),
}


def content_of(path: Path) -> str:
    """Returns what a file holds, by its first bytes: "HDF5", or `UNKNOWN`."""
    try:
        with path.open("rb") as file:
            start = file.read(2048)
    except OSError:
        return UNKNOWN
    if not start.startswith(_GZIP):
        return _content(start)
    try:
        with gzip.open(path) as file:
            return _GZIPPED + _content(file.read(2048))
    except (OSError, EOFError, zlib.error):
        return _GZIPPED + UNKNOWN


def require_content(path: Path, suffix: str) -> None:
    """Raises InputError if a file holds something else than its suffix says.

    Unknown contents pass: readers say more about damaged files.
    """
    content = content_of(path)
    if content.endswith(UNKNOWN) or content in _READABLE[suffix]:
        return
    remedy = _REMEDIES.get(content.removeprefix(_GZIPPED), "Leave it out.")
    if names := _names(content):
        remedy = f"Rename it to end in {names}."
    raise InputError(
        f"{path}: is named {suffix}, but its content is {content}. {remedy}"
    )


def passed_over(path: Path) -> tuple[str, str] | None:
    """Tells what a scan is that runs pass over because of its name, and what to do.

    Args:
      path: a file whose name ends in no suffix that has a reader.

    Returns:
      Its format and the remedy, or None if it is probably no scan.
    """
    name = path.name.lower()
    for suffix, told in _FOREIGN.items():
        if name.endswith(suffix):
            return told
    content = content_of(path)
    if names := _names(content):
        return content, f"Rename it to end in {names} if it is a scan."
    if content in ("DICOM", "PAR/REC", "Siemens twix"):
        return content, _REMEDIES[content]
    return None


def _content(start: bytes) -> str:
    text = start.lstrip().lower()
    signs = {
        _HDF5: start.startswith(b"\x89HDF\r\n\x1a\n"),
        _NPY: start.startswith(b"\x93NUMPY"),
        _NIFTI: start[344:348] in (b"n+1\0", b"ni1\0")
        or start[4:8] in (b"n+2\0", b"ni2\0"),
        _ANALYZE: start[:4] in (b"\x5c\1\0\0", b"\0\0\1\x5c"),
        "empty": not start,
        "a web page": text.startswith((b"<!doctype", b"<html", b"<?xml")),
        "a Git LFS pointer": start.startswith(b"version https://git-lfs"),
        # A file's own pointer, or a link's target where links are not supported.
        "a git-annex pointer": start.startswith(b"/annex/objects/")
        or b".git/annex/objects/" in start.partition(b"\n")[0],
        "DICOM": start[128:132] == b"DICM",
        "a MATLAB file": start.startswith(b"MATLAB "),
        "PAR/REC": start.startswith(b"# === DATA DESCRIPTION FILE"),
        "BART": start.startswith(b"# Dimensions\n"),
        "a zip archive": start.startswith(b"PK\3\4"),
        # VB's first buffer has one of these names; VD and VE have a table of up to 64
        # measurements, of which the first starts at 10240.
        "Siemens twix": start[8:].startswith((b"Config\0", b"Dicom\0", b"Meas\0"))
        or (
            start[1:4] == start[5:8] == bytes(3)
            and 0 < start[4] <= 64
            and start[16:24] == (10240).to_bytes(8, "little")
        ),
    }
    return next((kind for kind, holds in signs.items() if holds), UNKNOWN)


def _names(content: str) -> str:
    suffixes = [suffix for suffix, held in _READABLE.items() if content in held]
    return " or ".join(suffixes)
