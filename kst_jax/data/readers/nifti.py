"""NIfTI and Analyze volumes: magnitudes, from which k-space is simulated."""

import dataclasses
import gzip
import io
import itertools
import math
import threading
from pathlib import Path
from typing import Any, ClassVar

import cachetools
import nibabel as nib
import numpy as np
import scipy.io

from kst_jax.data.fourier import fft2c
from kst_jax.data.samples import Sample
from kst_jax.errors import InputError
from kst_jax.programs import files

# Axis across the slices of a plane, where x points right, y anterior and z superior.
PLANES = {"sagittal": 0, "coronal": 1, "axial": 2}

# Sixteen 1 mm heads of 256^3: 1 GiB as float32, and about 4 GiB during decoding.
MAX_VOXELS = 2**28
# Compressed files cannot be read slice by slice, so the most recent ones stay decoded,
# in no more memory than the largest volume may take.
_MAX_DECODED_BYTES = 4 * MAX_VOXELS
# Deflate never packs tighter, so a file cannot hold more than this times its size.
_MAX_COMPRESSION = 1032
_MAX_AFFINE_BYTES = 2**16
_BLOCK_BYTES = 2**20
_HEADER_BYTES = 1024  # more than any of the headers has

# Pipelines read in threads: one decodes a volume, the others find it in the cache.
_DECODING = threading.Lock()


@dataclasses.dataclass(frozen=True)
class NiftiVolume:
    """One magnitude volume, cut into slices of one plane.

    Attributes:
      path: a .nii or .nii.gz file, or the .hdr of an Analyze pair.
      plane: a key of PLANES.
      depth: number of slices of the plane.
      shape: rows and columns of a slice.
      pixel: height and width of a pixel in mm.
      slices: numbers of the slices that are not empty, counted from left to right
        (sagittal), posterior to anterior (coronal) or inferior to superior (axial).
      doubts: see `volumes.Volume`.
      stored: the values in the file.
    """

    path: Path
    plane: str
    depth: int
    shape: tuple[int, int]
    pixel: tuple[float, float]
    slices: tuple[int, ...]
    doubts: tuple[str, ...]
    stored: "_Stored" = dataclasses.field(repr=False, compare=False)
    measured: ClassVar[bool] = False
    undersampled: ClassVar[bool] = False
    patient: ClassVar[str] = ""  # the file names nobody
    coils: ClassVar[int] = 1
    geometry: ClassVar[None] = None
    acquisition: ClassVar[str] = ""

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the images: those of a slice."""
        return self.shape

    def sampled(self, index: int) -> None:
        """The file does not say which points were measured."""

    def read(self, index: int) -> np.ndarray:
        """Reads one slice as a complex64 image (H, W), in the volume's units.

        The top row is superior (in the axial plane, anterior). Columns run from left
        to right (in the sagittal plane, from posterior to anterior).
        """
        axis = PLANES[self.plane]
        if self.stored.compressed:
            # Not `np.take`, which copies the whole volume first.
            plane = np.moveaxis(_decoded(self.stored), axis, 0)[index]
        else:
            plane = self.stored.read(axis, index).squeeze(axis)
        return plane[:, ::-1].T.astype(np.complex64, order="C")

    def sample(self, index: int) -> Sample:
        """Simulated k-space of one slice, complete."""
        return Sample(
            kspace=fft2c(self.read(index)),
            mask=None,
            where=f"{self.path}: slice {index}",
            simulated=True,
        )


def open_volume(path: Path, plane: str, min_foreground: float) -> NiftiVolume:
    """Reads a volume once to find the slices that are not empty.

    The affine gives the orientation. Analyze files have no reliable affine, so they get
    nibabel's default: the first axis runs from right to left, the second to anterior,
    the third to superior. If a pair was stored otherwise, its slices appear under
    another plane's name.

    Args:
      path: the file.
      plane: a key of PLANES.
      min_foreground: share of bright pixels below which a slice is left out as empty.
        Bright pixels exceed 10 % of the volume's 99.9th percentile, which stands in for
        the maximum because outliers are common.

    Raises:
      InputError: the file is not one real-valued volume with finite values and an
        orientation, or it has no slice with a foreground.
    """
    stored = _stored(path)
    with _DECODING:  # the file may have changed since it was decoded
        _decode.cache.pop(_decode.cache_key(stored), None)
    volume = _decoded(stored) if stored.compressed else stored.read()
    doubts = _doubts(volume)
    volume = np.abs(volume)
    axis = PLANES[plane]
    bright = volume > 0.1 * np.percentile(volume, 99.9)
    across, down = sorted({0, 1, 2} - {axis})
    shares = bright.mean(axis=(across, down))
    slices = np.flatnonzero(shares >= min_foreground)
    if not bright.any() or not slices.size:
        raise InputError(
            f"{path}: no {plane} slice has a foreground of {min_foreground:.0%} of its "
            "pixels. Leave out the file, or lower min_foreground if it is not blank."
        )
    return NiftiVolume(
        path,
        plane,
        volume.shape[axis],
        (volume.shape[down], volume.shape[across]),
        (stored.spacing[down], stored.spacing[across]),
        tuple(slices.tolist()),
        doubts,
        stored,
    )


def _doubts(volume: np.ndarray) -> tuple[str, ...]:
    low, high = volume.min(), volume.max()
    if low >= 0:
        return ()
    return (
        f"holds negative values ({low:.3g} to {high:.3g}), which magnitudes never are. "
        "Scores compare absolute values, and empty slices may not be found. Use the "
        "volume as it was before its intensities were shifted or normalised.",
    )


def beside(path: Path, suffix: str) -> Path:
    """Returns the file of a pair that is named as `path` is, with another suffix.

    Args:
      path: one file of the pair.
      suffix: the other's, in lower case. The file may have it in any case. If there is
        no such file, the result has the suffix in the case of `path`'s.
    """
    alike = suffix.upper() if path.suffix.isupper() else suffix
    cases = itertools.product(*zip(suffix, suffix.upper(), strict=True))
    paths = [path.with_suffix(case) for case in (alike, *map("".join, cases))]
    return next((path for path in paths if path.exists()), paths[0])


class _NoExtensions(nib.nifti1.Nifti1Extensions):
    """Reads no extensions: they are not needed, and they may claim to be gigabytes."""

    @classmethod
    def from_fileobj(cls, *_: Any) -> "_NoExtensions":
        return cls()


def _without_extensions(kind: type[nib.Nifti1Pair]) -> type[nib.Nifti1Pair]:
    header = type("Header", (kind.header_class,), {"exts_klass": _NoExtensions})
    return type("Image", (kind,), {"header_class": header})


_SINGLE_FILES = tuple(map(_without_extensions, (nib.Nifti1Image, nib.Nifti2Image)))
# SPM's reader takes every kind of Analyze pair.
_PAIRS = (
    *map(_without_extensions, (nib.Nifti1Pair, nib.Nifti2Pair)),
    nib.Spm2AnalyzeImage,
)


def load(path: Path) -> Any:
    """Reads a file's header into one of nibabel's images; nothing is decoded.

    Decoding opens the file anew and closes it.

    Raises:
      InputError: the header is neither NIfTI's nor Analyze's, or SPM's affine beside it
        is damaged.
    """
    with _opened(path) as file:
        start = file.read(_HEADER_BYTES)
    pair = path.suffix.lower() == ".hdr"
    kinds: tuple[Any, ...] = _PAIRS if pair else _SINGLE_FILES
    kind = next((k for k in kinds if k.header_class.may_contain_header(start)), None)
    if kind is None:
        raise InputError(
            f"{path}: has no header of NIfTI{' or Analyze' if pair else ''}. Copy or "
            "download it again, or leave it out."
        )
    holder = nib.fileholders.FileHolder
    parts = {"image": holder(str(beside(path, ".img") if pair else path))}
    if pair:
        parts["header"] = holder(str(path))
    if kind is nib.Spm2AnalyzeImage:
        parts["mat"] = holder(fileobj=io.BytesIO(_spm_affine(path)))
    return kind.from_file_map(parts, mmap="r")


def _opened(path: Path) -> Any:
    return gzip.open(path) if path.suffix.lower() == ".gz" else path.open("rb")


def _spm_affine(path: Path) -> bytes:
    """Contents of the .mat in which SPM keeps an Analyze pair's affine.

    Empty if there is none. Other programs write files of this name too: FSL keeps
    registrations in them, as text, and MATLAB any variables.
    """
    affine = beside(path, ".mat")
    files.require_ordinary(affine)
    if not affine.exists():
        return b""
    with affine.open("rb") as file:
        contents = file.read(_MAX_AFFINE_BYTES + 1)
    if not (contents.startswith(b"MATLAB") or 0 in contents[:4]):  # versions 5 and 4
        return b""
    try:
        if len(contents) > _MAX_AFFINE_BYTES:
            raise ValueError(f"more than {_MAX_AFFINE_BYTES} bytes")
        values = scipy.io.loadmat(io.BytesIO(contents), variable_names=["mat", "M"])
    except Exception as error:  # damaged files fail in many ways inside scipy
        raise InputError(
            f"{affine}: lies beside a scan, but cannot be read as SPM's affine of it "
            f"({error}). Copy it again, or rename it if it is something else."
        ) from error
    matrix = values.get("mat", values.get("M"))
    return b"" if matrix is None or matrix.shape[:2] != (4, 4) else contents


@dataclasses.dataclass(frozen=True)
class _Stored:
    """Where a volume's values are. It holds no open file and can be pickled."""

    path: Path
    shape: tuple[int, int, int]
    orientation: np.ndarray = dataclasses.field(compare=False)
    spacing: tuple[float, ...]  # mm between voxels along right, anterior, superior
    values: nib.arrayproxy.ArrayProxy = dataclasses.field(compare=False)

    @property
    def compressed(self) -> bool:
        """Whether the whole volume has to be decoded for any part of it."""
        return self.path.suffix.lower() == ".gz"

    def read(self, axis: int = 0, index: int | None = None) -> np.ndarray:
        """Reads float32 (x, y, z), where x points right, y anterior and z superior.

        An index selects one place along the axis, whose length is then 1.
        """
        part = [slice(None)] * 3
        if index is not None:
            stored = int(np.flatnonzero(self.orientation[:, 0] == axis)[0])
            forward = self.orientation[stored, 1] > 0
            place = index if forward else self.shape[stored] - 1 - index
            part[stored] = slice(place, place + 1)
        values = self._unscaled().reshape(self.shape)[tuple(part)]
        with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported below
            scaled = nib.volumeutils.apply_read_scaling(
                values, self.values.slope, self.values.inter
            )
            scaled = np.asarray(scaled, dtype=np.float32)
        if not np.isfinite(scaled).all():
            raise InputError(
                f"{self.path}: holds values that are not finite. Repair the file or "
                "leave it out."
            )
        # Like `nib.as_closest_canonical`, which would scale to float64 on the way.
        return nib.apply_orientation(scaled, self.orientation)

    def _unscaled(self) -> np.ndarray:
        if not self.compressed:
            return self.values.get_unscaled()  # mapped: only what is used is read
        values, limit = self.values, _MAX_DECODED_BYTES
        with gzip.open(self.path) as stream:
            array = nib.volumeutils.array_from_file(
                values.shape, values.dtype, stream, values.offset, values.order, False
            )
            # Checksums are at the end, and gzip looks at them only when it gets there.
            while block := stream.read(_BLOCK_BYTES):
                limit -= len(block)
                if limit < 0:
                    raise InputError(
                        f"{self.path}: more than {_MAX_DECODED_BYTES} bytes follow its "
                        "values. The file is probably damaged; copy it again."
                    )
        return array


def _stored(path: Path) -> _Stored:
    image = load(path)
    shape = _checked_shape(image, path)
    orientation = _orientation(image, path)
    sizes = nib.affines.voxel_sizes(image.affine)
    spacing = tuple(sizes[np.argsort(orientation[:, 0])].tolist())
    return _Stored(path, shape, orientation, spacing, image.dataobj)


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
    while len(shape) > 3 and shape[-1] == 1:  # as in OASIS's Analyze volumes
        shape = shape[:-1]
    if len(shape) != 3 or min(shape) < 1:
        raise InputError(
            f"{path}: has shape {shape}, but must be one volume (x, y, z). Split "
            "series into single volumes first."
        )
    if dtype.kind not in "iuf":
        raise InputError(
            f"{path}: holds values of type {dtype}, not real numbers. Save their "
            "magnitude as another volume."
        )
    size = Path(image.file_map["image"].filename).stat().st_size
    voxels = math.prod(shape)
    largest = MAX_VOXELS * 8 // max(8, dtype.itemsize)
    if voxels > largest or voxels * dtype.itemsize > _MAX_COMPRESSION * size:
        raise InputError(
            f"{path}: its header claims the shape {shape} of {dtype}, more than "
            f"{largest} voxels or than a file of {size} bytes can hold. The file is "
            "probably damaged; copy or download it again."
        )
    return shape


def _orientation(image: nib.spatialimages.SpatialImage, path: Path) -> np.ndarray:
    affine = image.affine
    if np.isfinite(affine).all():
        orientation = nib.io_orientation(affine)
        if np.isfinite(orientation).all():
            return orientation
    raise InputError(
        f"{path}: its affine does not give the directions of the axes. Set a valid "
        "affine, for example by converting the original DICOM files again."
    )
