"""What a scan's file holds, and what is wrong with it.

A file is read as a run reads it, by the same readers and transforms, one slice after
another. So what has no error here can be trained on, and what has one cannot.
"""

import contextlib
import dataclasses
import gzip
import itertools
import math
import zlib
from collections.abc import Callable
from pathlib import Path

import nibabel as nib
import numpy as np

from kst_jax.config import DataConfig, Selection
from kst_jax.data import fourier, transforms, volumes
from kst_jax.data.readers import fastmri, nifti, npy
from kst_jax.data.volumes import Volume, suffix_of
from kst_jax.errors import InputError

_GZIP = b"\x1f\x8b"
_GZIPPED = "gzip-compressed "
_UNKNOWN = "unknown"
_HDF5, _NIFTI, _ANALYZE, _NPY = "HDF5", "NIfTI", "Analyze", "NumPy"
# What a reader takes, by the beginning of the file.
_READABLE = {
    ".h5": (_HDF5,),
    ".npy": (_NPY,),
    ".nii": (_NIFTI,),
    ".nii.gz": (_GZIPPED + _NIFTI,),
    ".hdr": (_ANALYZE, _NIFTI),
}
# What else is found under a scan's name, and what to do about it.
_FOREIGN = {
    "empty": "Copy or download it again.",
    "a web page": "Log in where it comes from, then download it again.",
    "a Git LFS pointer": "Fetch the file itself with `git lfs pull`.",
    "DICOM": "Convert the series to NIfTI, for instance with dcm2niix.",
    "a MATLAB file": "Store its k-space as .h5 or .npy.",
    "a zip archive": "Unpack it.",
}
# The brightest point of k-space may lie this far from the centre, as a share.
_OFF_CENTRE = 1 / 16
_SHOWN = 8  # slices or faults of one file


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something worth knowing of a file.

    Attributes:
      level: "error": a run refuses it; "warning": a run takes (or leaves out) what is
        probably wrong; "note": nothing is wrong.
      what: what it is, and what to do about it.
    """

    level: str
    what: str


@dataclasses.dataclass
class Examination:
    """What was found in one file; None where it could not be told.

    Attributes:
      path: the file.
      kind: what the file is, by its content.
      subject: whose scan it is.
      stored: shape of the array in the file.
      dtype: type of its values.
      coils: number of receiver coils; None for magnitudes.
      orientation: where the array's axes point to, as nibabel has it ("RAS"), and
        "assumed" where the file does not tell.
      measured: whether a run takes its k-space for measured; otherwise as simulated.
      depth: number of slices, empty ones too.
      slices: number of slices that a run would take.
      sizes: rows and columns of these.
      low: least magnitude, in the file's units.
      high: largest magnitude.
      decoding: bytes that reading one slice takes at its peak (NIfTI and Analyze:
        decoding the whole volume).
      holding: bytes of all slices taken, as complex64 images.
      findings: what is wrong, or worth knowing.
    """

    path: Path
    kind: str = "?"
    subject: str | None = None
    stored: tuple[int, ...] | None = None
    dtype: str | None = None
    coils: int | None = None
    orientation: str | None = None
    measured: bool | None = None
    depth: int | None = None
    slices: int | None = None
    sizes: list[tuple[int, int]] = dataclasses.field(default_factory=list)
    low: float | None = None
    high: float | None = None
    decoding: int | None = None
    holding: int = 0
    findings: list[Finding] = dataclasses.field(default_factory=list)

    def add(self, level: str, what: object) -> None:
        """Note a finding, without the file's name before it."""
        self.findings.append(Finding(level, str(what).removeprefix(f"{self.path}: ")))


def examine(path: Path, data: DataConfig, selection: Selection) -> Examination:
    """Look at a scan's file, and read every slice of it that a run would take.

    Args:
      path: a file with one of the suffixes in `volumes.READERS`.
      data: size, crop and padding of a run.
      selection: slices that it takes.
    """
    found, suffix = Examination(path), suffix_of(path)
    try:
        volumes.require_file(path)
    except InputError as error:
        found.add("error", error)
        return found
    found.kind = content_of(path)
    # What cannot be told of a file that is refused stays unknown.
    with contextlib.suppress(InputError), volumes.reading(path):
        _LOOK[suffix](path, found)
    try:
        volume = volumes.open_volume(path, selection)
        numbers = volumes.selected(volume, selection)
    except InputError as error:
        known = found.kind not in (_UNKNOWN, _GZIPPED + _UNKNOWN)
        if known and found.kind not in _READABLE[suffix]:
            found.add("error", _misnamed(suffix, found.kind))
        else:
            found.add("error", error)
        return found
    _read(volume, numbers, data, found)
    return found


def examine_other(path: Path) -> Examination | None:
    """What is wrong with a path that runs pass over in silence, or None."""
    known = suffix_of(path) or path.suffix.lower() == ".img"
    if known or not path.is_file() or not (names := _names(kind := content_of(path))):
        return None
    found = Examination(path, kind)
    found.add(
        "warning",
        f"is left out: its content is {kind}, but its name does not end in "
        f"{' or '.join(names)}. Rename it if it is a scan.",
    )
    return found


def content_of(path: Path) -> str:
    """What a file is by its first bytes, such as "HDF5"; or else "unknown"."""
    try:
        with path.open("rb") as file:
            start = file.read(2048)
    except OSError:
        return _UNKNOWN
    if not start.startswith(_GZIP):
        return _content(start)
    try:
        with gzip.open(path) as file:
            return _GZIPPED + _content(file.read(2048))
    except (OSError, EOFError, zlib.error):
        return _GZIPPED + _UNKNOWN


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
        "DICOM": start[128:132] == b"DICM",
        "a MATLAB file": start.startswith(b"MATLAB "),
        "a zip archive": start.startswith(b"PK\3\4"),
    }
    return next((kind for kind, holds in signs.items() if holds), _UNKNOWN)


def _names(content: str) -> list[str]:
    return [suffix for suffix, contents in _READABLE.items() if content in contents]


def _misnamed(suffix: str, content: str) -> str:
    remedy = _FOREIGN.get(content.removeprefix(_GZIPPED), "Leave it out.")
    if names := _names(content):
        remedy = f"Rename it to end in {' or '.join(names)}."
    return f"is named {suffix}, but its content is {content}. {remedy}"


def _look_fastmri(path: Path, found: Examination) -> None:
    with fastmri.open_file(path) as file:
        kspace = fastmri.kspace_of(file, path)
        found.stored, found.dtype = kspace.shape, str(kspace.dtype)
        if kspace.shape and len(kspace.shape) in (3, 4):
            found.coils = 1 if len(kspace.shape) == 3 else kspace.shape[1]
            itemsize = kspace.dtype.itemsize
            # A chunk is looked at packed and unpacked before it is read.
            chunk = 2 * math.prod(kspace.chunks or (0,)) * itemsize
            found.decoding = chunk + _decoding(math.prod(kspace.shape[-2:]), itemsize)


def _look_nifti(path: Path, found: Examination) -> None:
    image = nifti.load(path)
    found.stored, dtype = tuple(image.shape), image.get_data_dtype()
    found.dtype = str(dtype)
    # As float32 three times while empty slices are looked for; scaled, as float64.
    found.decoding = math.prod(found.stored) * max(16, 2 * dtype.itemsize)
    found.orientation = "".join(c or "?" for c in nib.aff2axcodes(image.affine))
    header = image.header
    if not (
        isinstance(header, nib.Nifti1Header)
        and (header["sform_code"] or header["qform_code"])
    ):
        found.orientation += " assumed"
        found.add(
            "note",
            "does not say how its axes lie; where slices show another plane than "
            "asked for, convert the original DICOM files to NIfTI.",
        )


def _look_npy(path: Path, found: Examination) -> None:
    array = npy.memory_map(path)
    found.stored, found.dtype, found.coils = array.shape, str(array.dtype), 1
    points = math.prod(array.shape[1:3])
    found.decoding = _decoding(points, array[:1, :1, :1].nbytes)


def _decoding(points: int, itemsize: int) -> int:
    """Bytes of a slice as stored, twice, and of two images while it is transformed."""
    return points * 2 * (itemsize + np.dtype(np.complex64).itemsize)


_LOOK: dict[str, Callable[[Path, Examination], None]] = {
    ".h5": _look_fastmri,
    ".npy": _look_npy,
    ".nii": _look_nifti,
    ".nii.gz": _look_nifti,
    ".hdr": _look_nifti,
}


def _read(
    volume: Volume, numbers: list[int], data: DataConfig, found: Examination
) -> None:
    found.measured, found.depth = volume.measured, volume.depth
    found.subject, found.slices = volume.subject, len(numbers)
    if empty := volume.depth - len(volume.slices):
        found.add("note", f"{empty} of {volume.depth} slices are left out as empty.")
    faults: dict[str, list[int]] = {}
    sizes, peak = set(), _Peak()
    for number in numbers:
        try:
            with volumes.reading(volume.path):
                image = volume.read(number)
            sizes.add(image.shape)
            found.holding += image.nbytes
            with np.errstate(over="ignore"):  # `normalise` reports it
                _span(np.abs(image), found)
                peak.see(image)
            _normalise(image, data, number)
        except InputError as error:
            what = str(error).removeprefix(f"{found.path}: ")
            what = what.removeprefix(f"slice {number}").lstrip(": ")
            faults.setdefault(what, []).append(number)
    found.sizes = sorted(sizes)
    for what, where in list(faults.items())[:_SHOWN]:
        found.add("error", f"{_listed(where)}: {what}")
    if more := sorted(itertools.chain(*list(faults.values())[_SHOWN:])):
        found.add("error", f"{_listed(more)}: cannot be used for other reasons.")
    if offset := peak.offset():
        found.add("warning", offset)


def _normalise(image: np.ndarray, data: DataConfig, number: int) -> None:
    """What every slice goes through on its way to a network."""
    where = f"slice {number}"
    image = transforms.field_of_view(image, data, where)
    image = transforms.fourier_resize(image, data.size, data.resize)
    everything = np.ones(image.shape, bool)
    transforms.normalise(image, everything, data.normalise, where)


def _span(magnitude: np.ndarray, found: Examination) -> None:
    largest = np.finfo(np.float32).max  # of two channels together it may be beyond
    low, high = float(magnitude.min()), float(min(magnitude.max(), largest))
    found.low = low if found.low is None else min(low, found.low)
    found.high = high if found.high is None else max(high, found.high)


def _listed(numbers: list[int]) -> str:
    shown = ", ".join(map(str, numbers[:_SHOWN])) + (
        ", ..." if numbers[_SHOWN:] else ""
    )
    if len(numbers) == 1:
        return f"slice {shown}"
    return f"{len(numbers)} slices ({shown})"


class _Peak:
    """The brightest point of a volume's k-space."""

    def __init__(self) -> None:
        self._value = 0.0
        self._place: tuple[int, ...] = (0, 0)
        self._shape: tuple[int, ...] = (0, 0)

    def see(self, image: np.ndarray) -> None:
        spectrum = np.abs(fourier.fft2c(image))
        value = float(spectrum.max())
        if value > self._value:
            place = np.unravel_index(spectrum.argmax(), spectrum.shape)
            self._value, self._shape = value, spectrum.shape
            self._place = tuple(map(int, place))

    def offset(self) -> str | None:
        """What to say where it is not about the centre."""
        centre = tuple(n // 2 for n in self._shape)
        if all(
            abs(p - c) <= max(1, _OFF_CENTRE * n)
            for p, c, n in zip(self._place, centre, self._shape, strict=True)
        ):
            return None
        return (
            f"k-space is not centred: its brightest point is {self._place}, not about "
            f"{centre}. If it lies in a corner, store np.fft.fftshift(kspace, axes=) "
            "of the two image axes; if it lies anywhere, these may be images or noise."
        )
