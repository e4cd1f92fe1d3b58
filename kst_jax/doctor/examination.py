"""Examination of one scan: what its file holds, and what is wrong with it.

A file is read slice by slice, with the readers and transforms of a run. So runs accept
a file without errors here, and refuse any other.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Callable, Iterable
from pathlib import Path

import nibabel as nib
import numpy as np

from kst_jax import coils
from kst_jax.data import contents, fourier, native, samples, transforms, volumes
from kst_jax.data.native import Grid, View
from kst_jax.data.off_grid import OffGridVolume
from kst_jax.data.readers import bart, fastmri, mrd, nifti, npy
from kst_jax.data.volumes import Volume, suffix_of
from kst_jax.data_config import DataConfig, Selection
from kst_jax.errors import InputError

# How far the brightest point of k-space may lie from the centre, as a share.
_OFF_CENTRE = 1 / 16
_SHOWN = 8  # slices, or faults, that are listed for one file


@dataclasses.dataclass(frozen=True)
class Finding:
    """Something worth knowing about a file.

    Attributes:
      level: "error": a run refuses the file; "warning": a run uses it or passes it
        over, and that is probably wrong; "note": nothing is wrong.
      what: the finding, and what to do about it.
    """

    level: str
    what: str


@dataclasses.dataclass
class Examination:
    """Findings about one file; None stands for what is not known.

    Attributes:
      path: the file.
      kind: format of its content.
      subject: whose scan it is.
      stored: shape of the array in the file.
      dtype: type of its values.
      coils: number of receiver coils; None for magnitudes.
      orientation: directions of the array's axes in nibabel's letters ("RAS"), with
        "assumed" if the file does not give them.
      measured: whether a run treats its k-space as measured rather than simulated.
      depth: number of slices, including empty ones.
      slices: number of slices that a run would use.
      sizes: rows and columns of these slices; of a native run, without the readout's
        oversampling.
      grid: what a native run puts into one batch with these slices; None if the run
        resizes them.
      low: least value in the file's units, or least magnitude if values are complex.
      high: largest value or magnitude.
      decoding: peak memory in bytes for reading one slice (NIfTI and Analyze: for
        decoding the whole volume).
      holding: size in bytes of all slices used, as complex64 images.
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
    grid: Grid | None = None
    low: float | None = None
    high: float | None = None
    decoding: int | None = None
    holding: int = 0
    findings: list[Finding] = dataclasses.field(default_factory=list)

    def add(self, level: str, what: object) -> None:
        """Adds a finding; drops the file's name from the start of its text."""
        self.findings.append(Finding(level, str(what).removeprefix(f"{self.path}: ")))


def examine(
    path: Path,
    data: DataConfig,
    selection: Selection,
    file: str = "",
    subject: str | None = None,
) -> Examination:
    """Reads all slices of a scan that a run would use.

    Args:
      path: a file with one of the suffixes in `volumes.READERS`.
      data: coils of a run, and its size, crop and padding or that it is native.
      selection: slices that the run uses.
      file: the file's name in a run, as in `sources.About`; by default its own.
      subject: whose scan it is.
    """
    found = Examination(path)
    try:
        volumes.require_file(path)
        found.kind = contents.content_of(path)
        # The metadata of a refused file are shown as far as they can be read.
        with contextlib.suppress(InputError), volumes.reading(path):
            _LOOK[suffix_of(path)](path, found)
        volume = volumes.open_volume(path, selection)
        volumes.require_coils(volume, data.coils.count)
        numbers = volumes.selected(volume, selection, file or path.name)
    except InputError as error:
        found.add("error", error)
        return found
    for doubt in volume.doubts:
        found.add("warning", doubt)
    if zeros := volumes.doubt_of_zeros(volume, numbers[len(numbers) // 2]):
        found.add("warning", zeros)
    found.subject = subject
    if data.native:
        found.grid = native.grid_of(volume)
    _read(volume, numbers, data, found)
    return found


def patient_of(path: Path) -> str:
    """Returns who a file says was scanned; empty if it does not say or is damaged."""
    if suffix_of(path) not in (".h5", ".mrd"):
        return ""
    try:
        volumes.require_file(path)
        if mrd.is_mrd(path):
            with volumes.reading(path):
                return mrd.open_volume(path).patient
        with volumes.reading(path), fastmri.open_file(path) as file:
            return fastmri.attribute(file, "patient_id")
    except InputError:  # examined later
        return ""


def examine_others(paths: Iterable[Path]) -> list[Examination]:
    """Looks for scans among files that runs pass over because of their names.

    A series may have hundreds of files, so those of one folder and format share an
    examination, which names the first of them.
    """
    groups: dict[tuple[Path, str, str], list[Path]] = {}
    for path in sorted(paths):
        named = suffix_of(path) or path.suffix.lower() == ".img"
        if not named and path.is_file() and (told := contents.passed_over(path)):
            groups.setdefault((path.parent, *told), []).append(path)
    examined = []
    for (_, kind, remedy), alike in groups.items():
        found = Examination(alike[0], kind)
        more = f", and so are {len(alike) - 1} more of its folder" if alike[1:] else ""
        found.add("warning", f"is left out{more}. {remedy}")
        examined.append(found)
    return examined


def _look_hdf5(path: Path, found: Examination) -> None:
    (_look_mrd if mrd.is_mrd(path) else _look_fastmri)(path, found)


def _look_mrd(path: Path, found: Examination) -> None:
    volume = mrd.open_volume(path)
    found.kind, found.coils = "ISMRMRD", volume.coils
    found.stored, found.dtype = (volume.depth, *volume.shape), "complex64"
    if isinstance(volume, OffGridVolume):
        sentences = list(volume.described)
        found.measured, found.depth = volume.measured, volume.depth
        found.sizes = [volume.shape]
    else:
        sentences = volume.described()
        found.decoding = _decoding(volume.coils * math.prod(volume.grid.encoded), 8)
    for what in sentences:
        found.add("note", what)


def _look_fastmri(path: Path, found: Examination) -> None:
    with fastmri.open_file(path) as file:
        kspace = fastmri.kspace_of(file, path)
        found.stored, found.dtype = kspace.shape, str(kspace.dtype)
        if kspace.shape and len(kspace.shape) in (3, 4):
            found.coils = 1 if len(kspace.shape) == 3 else kspace.shape[1]
            itemsize = kspace.dtype.itemsize
            # A chunk is unpacked once to check its size, and again to read it.
            chunk = 2 * math.prod(kspace.chunks or (0,)) * itemsize
            found.decoding = chunk + _decoding(math.prod(kspace.shape[-2:]), itemsize)
    _note_sampling(fastmri.open_volume(path), found)


def _note_sampling(volume: Volume, found: Examination) -> None:
    """Adds a note on the undersampling of a scan's middle slice."""
    index = volume.depth // 2
    sample = volume.sample(index)
    empty = native.empty_columns(sample, volume.shape)
    mask = samples.sampling_mask(sample, empty)
    if (mask | empty).all():
        return
    rows, columns = coils.centre_of(mask)
    found.add(
        "note",
        f"slice {index} has {mask.sum()} of {(~empty).sum()} points, "
        f"{(~empty).sum() / mask.sum():.1f}x; {rows} rows and {columns} columns in the "
        "centre are complete.",
    )


def _look_nifti(path: Path, found: Examination) -> None:
    image = nifti.load(path)
    found.stored, dtype = tuple(image.shape), image.get_data_dtype()
    found.dtype = str(dtype)
    # The search for empty slices holds three float32 copies; scaling needs float64.
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
            "does not give the directions of its axes. If slices show another plane "
            "than asked for, convert the original DICOM files to NIfTI.",
        )


def _look_npy(path: Path, found: Examination) -> None:
    array = npy.memory_map(path)
    found.stored, found.dtype, found.coils = array.shape, str(array.dtype), 1
    points = math.prod(array.shape[1:3])
    # A slice as stored, and two images from it; the rest of the file is not read.
    found.decoding = points * (array[:1, :1, :1].nbytes + 2 * 8)


def _look_bart(path: Path, found: Examination) -> None:
    found.kind, found.dtype = "BART", "complex64"
    found.stored = bart.dimensions_of(path)
    volume = bart.open_volume(path)
    found.stored = volume.depth, volume.coils, *volume.shape
    found.coils = volume.coils
    found.decoding = _decoding(volume.coils * math.prod(volume.shape), 8)
    _note_sampling(volume, found)


def _decoding(points: int, itemsize: int) -> int:
    """Size in bytes of two copies of a slice as stored, and of two images from it."""
    return points * 2 * (itemsize + np.dtype(np.complex64).itemsize)


_LOOK: dict[str, Callable[[Path, Examination], None]] = {
    ".h5": _look_hdf5,
    ".mrd": _look_mrd,
    ".cfl": _look_bart,
    ".npy": _look_npy,
    ".nii": _look_nifti,
    ".nii.gz": _look_nifti,
    ".hdr": _look_nifti,
}


def _read(
    volume: Volume, numbers: list[int], data: DataConfig, found: Examination
) -> None:
    found.measured, found.depth = volume.measured, volume.depth
    found.slices = len(numbers)
    if empty := volume.depth - len(volume.slices):
        found.add("note", f"{empty} of {volume.depth} slices are left out as empty.")
    faults: dict[str, list[int]] = {}
    sizes, peak = set(), _Peak()
    for number in numbers:
        try:
            with volumes.reading(volume.path):
                view = _view(volume, number, found.grid)
                image = view.image
            sizes.add(image.shape[-2:])
            found.holding += image.nbytes
            with np.errstate(over="ignore"):  # `normalise` reports it
                _span(np.abs(image) if image.imag.any() else image.real, found)
                peak.see(image)
            _normalise(view, data, number)
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


def _view(volume: Volume, number: int, grid: Grid | None) -> View:
    """Reads a slice as a run does, a native one if there is a grid."""
    if grid is None:
        return View(volume.read(number), simulated=not volume.measured)
    return native.view(volume.sample(number), grid)


def _normalise(view: View, data: DataConfig, number: int) -> None:
    """Transforms a slice as a run does before it reaches a network."""
    image, where = view.image, f"slice {number}"
    if not data.native:
        image = transforms.field_of_view(image, data, where)
        image = transforms.fourier_resize(image, data.size, data.resize)
    everything = np.ones(image.shape[-2:], bool)
    measured = everything if view.empty is None else ~view.empty
    transforms.normalise(image, measured, data.normalise, where)


def _span(values: np.ndarray, found: Examination) -> None:
    largest = np.finfo(np.float32).max  # a magnitude of two channels may exceed it
    low, high = float(values.min()), float(min(values.max(), largest))
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
    """Finds the brightest point of a volume's k-space."""

    def __init__(self) -> None:
        self._value = 0.0
        self._place: tuple[int, ...] = (0, 0)
        self._shape: tuple[int, ...] = (0, 0)

    def see(self, image: np.ndarray) -> None:
        spectrum = native.root_sum_of_squares(fourier.fft2c(image))
        value = float(spectrum.max())
        if value > self._value:
            place = np.unravel_index(spectrum.argmax(), spectrum.shape)
            self._value, self._shape = value, spectrum.shape
            self._place = tuple(map(int, place))

    def offset(self) -> str | None:
        """Returns a warning if the point is far from the centre."""
        centre = tuple(n // 2 for n in self._shape)
        if all(
            abs(p - c) <= max(1, _OFF_CENTRE * n)
            for p, c, n in zip(self._place, centre, self._shape, strict=True)
        ):
            return None
        return (
            f"k-space is not centred: its brightest point is {self._place}, not about "
            f"{centre}. If it lies in a corner, apply np.fft.fftshift to the two image "
            "axes of the stored k-space; otherwise these may be images or noise."
        )
