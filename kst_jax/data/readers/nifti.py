"""NIfTI and Analyze volumes: magnitudes, whose k-space is simulated."""

import dataclasses
import math
import re
import threading
from pathlib import Path
from typing import Any, ClassVar

import cachetools
import nibabel as nib
import numpy as np

from kst_jax.errors import InputError
from kst_jax.programs import files

# The axis a plane's slices are counted along, once x is right, y anterior, z superior.
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}

# Sixteen 1 mm heads of 256^3: 1 GiB as float32, and about 4 GiB while it is decoded.
MAX_VOXELS = 2**28
# A compressed file cannot be read slice by slice, so those read last stay decoded: as
# many as are no larger together than the largest may be alone.
_MAX_DECODED_BYTES = 4 * MAX_VOXELS
# Deflate never packs tighter, so a file cannot hold more than this times its size.
_MAX_COMPRESSION = 1032
_MAX_AFFINE_BYTES = 2**16

_SUBJECTS = (
    re.compile(r"OAS[12]_\d{4}|OAS[34]\d{4}"),
    re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z0-9]+"),
)
# Pipelines read with threads: one at a time decodes, the others find it cached.
_DECODING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class NiftiVolume:
    """One magnitude volume, cut into slices of one plane.

    Attributes:
      path: a .nii or .nii.gz file, or the .hdr of an Analyze pair.
      plane: a key of PLANES.
      subject: see `subject_of`.
      depth: number of slices of the plane.
      slices: numbers of those that are not empty, counted from left to right
        (sagittal), posterior to anterior (coronal) or inferior to superior (axial).
      stored: its values in the file.
    """

    path: Path
    plane: str
    subject: str
    depth: int
    slices: tuple[int, ...]
    stored: "_Stored" = dataclasses.field(repr=False, compare=False)
    measured: ClassVar[bool] = False

    def read(self, index: int) -> np.ndarray:
        """Complex64 image (H, W) of one slice, in the volume's units.

        Superior is the top row (anterior in the axial plane); columns run from left
        to right (from posterior to anterior in the sagittal plane).
        """
        axis = PLANES[self.plane]
        if self.stored.compressed:
            # Not `np.take`, which copies the whole volume first.
            plane = np.moveaxis(_decoded(self.stored), axis, 0)[index]
        else:
            plane = self.stored.read(axis, index).squeeze(axis)
        return plane[:, ::-1].T.astype(np.complex64, order="C")


def open_volume(path: Path, plane: str, min_foreground: float) -> NiftiVolume:
    """Read a volume once to find the slices worth reading.

    Orientation goes by the affine. Analyze files have none that can be relied on:
    nibabel's default is taken (first axis from right to left, then anterior, then
    superior), so a pair stored otherwise shows its slices under another plane's name.

    Args:
      path: the file.
      plane: a key of PLANES.
      min_foreground: slices where a smaller share of the pixels is brighter than 10 %
        of the volume's maximum (its 99.9th percentile: outliers are common) are left
        out as empty.

    Raises:
      InputError: not one real-valued volume with finite values and an orientation.
    """
    stored = _stored(path)
    with _DECODING:  # the file may have been rewritten since
        _decode.cache.pop(_decode.cache_key(stored), None)
    volume = np.abs(_decoded(stored) if stored.compressed else stored.read())
    axis = PLANES[plane]
    bright = volume > 0.1 * np.percentile(volume, 99.9)
    shares = bright.mean(axis=tuple({0, 1, 2} - {axis}))
    slices = np.flatnonzero(shares >= min_foreground)
    if not bright.any() or not slices.size:
        raise InputError(
            f"{path}: no {plane} slice has a foreground of {min_foreground:.0%} of its "
            "pixels. Leave out the file, or lower min_foreground if it is not blank."
        )
    return NiftiVolume(
        path,
        plane,
        subject_of(path),
        volume.shape[axis],
        tuple(slices.tolist()),
        stored,
    )


def subject_of(path: Path) -> str:
    """Name whose scan it is: by OASIS or BIDS in the path, or else the file's stem.

    `OAS1_0001_MR1_mpr.hdr` gives OAS1_0001, `OAS30001_MR_d0129/anat.nii` OAS30001,
    `sub-01_ses-2_T1w.nii.gz` sub-01. The file's name goes before its folders'.
    """
    for pattern in _SUBJECTS:
        for part in reversed(path.absolute().parts):
            if match := pattern.search(part):
                return match[0]
    return Path(path.name.removesuffix(".gz")).stem


class _NoExtensions(nib.nifti1.Nifti1Extensions):
    """None are read: nothing here needs them, and they may claim to be gigabytes."""

    @classmethod
    def from_fileobj(cls, *_: Any) -> "_NoExtensions":
        return cls()


def _without_extensions(kind: type[nib.Nifti1Pair]) -> type[nib.Nifti1Pair]:
    header = type("Header", (kind.header_class,), {"exts_klass": _NoExtensions})
    return type("Image", (kind,), {"header_class": header})


_NIFTI = tuple(
    _without_extensions(kind)
    for kind in (nib.Nifti1Pair, nib.Nifti1Image, nib.Nifti2Pair, nib.Nifti2Image)
)


def load(path: Path) -> Any:
    """What nibabel makes of a file's header; nothing is decoded.

    Decoding it reads the file and closes it: one mapped into memory would stay open.

    Raises:
      InputError: an Analyze pair comes with an affine of SPM that cannot be one.
    """
    for kind in _NIFTI:
        if kind.path_maybe_image(path)[0]:
            return kind.from_filename(path, mmap="r")
    affine = path.with_suffix(".mat")  # read where SPM wrote the pair
    files.require_ordinary(affine)
    if affine.exists() and affine.stat().st_size > _MAX_AFFINE_BYTES:
        raise InputError(
            f"{affine}: lies beside a scan, but is too large for SPM's affine of it. "
            "Rename or remove it."
        )
    return nib.load(path, mmap="r")


@dataclasses.dataclass(frozen=True)
class _Stored:
    """A volume's values in its file, of which nothing stays open; can be pickled."""

    path: Path
    shape: tuple[int, int, int]
    orientation: np.ndarray = dataclasses.field(compare=False)
    values: nib.arrayproxy.ArrayProxy = dataclasses.field(compare=False)

    @property
    def compressed(self) -> bool:
        """Whether all of it has to be decoded for any part."""
        return self.path.suffix.lower() == ".gz"

    def read(self, axis: int = 0, index: int | None = None) -> np.ndarray:
        """Float32 (x, y, z) with x to the right, y anterior, z superior.

        With an index, only what lies there along the axis, whose length is then 1.
        """
        part = [slice(None)] * 3
        if index is not None:
            stored = int(np.flatnonzero(self.orientation[:, 0] == axis)[0])
            forward = self.orientation[stored, 1] > 0
            place = index if forward else self.shape[stored] - 1 - index
            part[stored] = slice(place, place + 1)
        # Mapped, and so only what is touched is read.
        values = self.values.get_unscaled().reshape(self.shape)[tuple(part)]
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported below
            scaled = nib.volumeutils.apply_read_scaling(
                values, self.values.slope, self.values.inter
            )
            scaled = np.asarray(scaled, dtype=np.float32)
        if not np.isfinite(scaled).all():
            raise InputError(
                f"{self.path}: holds values that are not finite. Repair or leave out "
                "the file."
            )
        # As `nib.as_closest_canonical`, which would scale to float64 on the way.
        return nib.apply_orientation(scaled, self.orientation)


def _stored(path: Path) -> _Stored:
    image = load(path)
    shape = _checked_shape(image, path)
    return _Stored(path, shape, _orientation(image, path), image.dataobj)


def _decoded(stored: _Stored) -> np.ndarray:
    with _DECODING:
        return _decode(stored)


@cachetools.cached(
    cachetools.LRUCache(_MAX_DECODED_BYTES, getsizeof=lambda volume: volume.nbytes)
)
def _decode(stored: _Stored) -> np.ndarray:
    return stored.read()


def _checked_shape(image: Any, path: Path) -> tuple:
    shape, dtype = tuple(image.shape), image.get_data_dtype()
    if len(shape) == 4 and shape[3] == 1:  # OASIS stores its Analyze volumes so
        shape = shape[:3]
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(
            f"{path}: has shape {shape}, but this reader takes one volume (x, y, z). "
            "Split series into single volumes first."
        )
    if dtype.kind not in "iuf":
        raise InputError(
            f"{path}: holds values of type {dtype}, not real numbers. Save its "
            "magnitude as a volume of its own."
        )
    size = Path(image.file_map["image"].filename).stat().st_size
    voxels = math.prod(shape)
    largest = MAX_VOXELS * 8 // max(8, dtype.itemsize)
    if voxels > largest or voxels * dtype.itemsize > _MAX_COMPRESSION * size:
        raise InputError(
            f"{path}: its header claims the shape {shape} of {dtype}, more than "
            f"{largest} voxels or than a file of {size} bytes can hold. The file is "
            "probably damaged."
        )
    return shape


def _orientation(image: nib.spatialimages.SpatialImage, path: Path) -> np.ndarray:
    affine = image.affine
    if np.isfinite(affine).all():
        orientation = nib.io_orientation(affine)
        if np.isfinite(orientation).all():
            return orientation
    raise InputError(
        f"{path}: its affine does not say how the axes lie. Set a valid affine, for "
        "instance by converting the original DICOM files again."
    )
