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
    """

    path: Path
    plane: str
    subject: str
    depth: int
    slices: tuple[int, ...]
    measured: ClassVar[bool] = False

    def read(self, index: int) -> np.ndarray:
        """Complex64 image (H, W) of one slice, in the volume's units.

        Superior is the top row (anterior in the axial plane); columns run from left
        to right (from posterior to anterior in the sagittal plane).
        """
        # Not `np.take`, which copies the whole volume first.
        plane = np.moveaxis(_volume(self.path), PLANES[self.plane], 0)[index]
        return plane[:, ::-1].T.astype(np.complex64, order="C")


def open_volume(path: Path, plane: str, min_foreground: float) -> NiftiVolume:
    """Decode a volume once to find the slices worth reading.

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
    with _DECODING:  # the file may have been rewritten since
        _decode.cache.pop(_decode.cache_key(path), None)
    volume = np.abs(_volume(path))
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
        path, plane, subject_of(path), volume.shape[axis], tuple(slices.tolist())
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


def _volume(path: Path) -> np.ndarray:
    with _DECODING:
        return _decode(path)


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
            return kind.from_filename(path, mmap=False)
    affine = path.with_suffix(".mat")  # read where SPM wrote the pair
    files.require_ordinary(affine)
    if affine.exists() and affine.stat().st_size > _MAX_AFFINE_BYTES:
        raise InputError(
            f"{affine}: lies beside a scan, but is too large for SPM's affine of it. "
            "Rename or remove it."
        )
    return nib.load(path, mmap=False)


@cachetools.cached(
    cachetools.LRUCache(_MAX_DECODED_BYTES, getsizeof=lambda volume: volume.nbytes)
)
def _decode(path: Path) -> np.ndarray:
    """Float32 (x, y, z) with x to the right, y anterior, z superior."""
    image = load(path)
    shape = _checked_shape(image, path)
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported below
        volume = np.asarray(image.dataobj, dtype=np.float32).reshape(shape)
    if not np.isfinite(volume).all():
        raise InputError(
            f"{path}: holds values that are not finite. Repair or leave out the file."
        )
    # As `nib.as_closest_canonical`, which would scale to float64 on the way.
    return nib.apply_orientation(volume, _orientation(image, path))


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
