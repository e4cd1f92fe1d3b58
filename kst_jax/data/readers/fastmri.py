"""fastMRI's HDF5 files, single-coil and multi-coil: measured k-space."""

import contextlib
import dataclasses
import itertools
import math
import zlib
from pathlib import Path
from typing import ClassVar

import h5py
import numpy as np

from kst_jax.data.fourier import ifft2c
from kst_jax.data.readers.ismrmrd_header import geometry_of
from kst_jax.data.samples import Geometry, Sample, fitting
from kst_jax.errors import InputError

# Far beyond any scan; keeps a damaged header from claiming all memory.
MAX_POINTS = 2**26  # in one slice or one HDF5 chunk: 512 MiB of complex64
MAX_SLICES = 2**16
# Of these the first in a file: "_esc" is of one coil, "_rss" of all.
TARGETS = ("reconstruction_esc", "reconstruction_rss")
_CHECKSUM = 4  # bytes that fletcher32 adds to a chunk
_PACKERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_LZF)
_LENGTH_KEEPERS = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)


@dataclasses.dataclass(frozen=True)
class FastMRIVolume:
    """One file in fastMRI's layout.

    Attributes:
      path: the file. It is opened again for every slice, so that the volume can be
        pickled and read in several processes.
      patient: the attribute `patient_id`; empty if there is none.
      depth: number of slices.
      shape: rows and columns of the k-space.
      coils: number of receiver coils.
      undersampled: whether the file has a mask, so that its k-space is incomplete.
      geometry: the grid of the header; None if the file has no header.
      target: name of the dataset of target images; empty if there is none.
      matrix: rows and columns of the targets, or else of the images that the header
        names, or else of the k-space.
      acquisition: the attribute of this name, such as "CORPD_FBK"; empty if there is
        none.
    """

    path: Path
    patient: str
    depth: int
    shape: tuple[int, int]
    coils: int
    undersampled: bool
    geometry: Geometry | None
    target: str
    matrix: tuple[int, int]
    acquisition: str
    doubts: ClassVar[tuple[str, ...]] = ()
    measured: ClassVar[bool] = True

    @property
    def slices(self) -> range:
        """Numbers of the slices that can be read."""
        return range(self.depth)

    @property
    def pixel(self) -> tuple[float, float] | None:
        """Height and width of a pixel in mm; None without a header."""
        return self.geometry.voxel[:2] if self.geometry else None

    def sampled(self, index: int) -> np.ndarray | None:
        """Points (H, W) that the file's mask calls measured; None without a mask."""
        if not self.undersampled:
            return None
        with open_file(self.path) as file:
            mask = _small(file, "mask", self.path)
        mask = fitting(mask, self.shape, self._where(index))
        if self.geometry is None:
            return mask
        return mask & ~self.geometry.empty(self.shape)

    def read(self, index: int) -> np.ndarray:
        """Reads one slice as a complex64 image, in the units of its k-space.

        It is (H, W), or (C, H, W) of several coils.
        """
        return to_image(self._kspace(index), self._where(index))

    def sample(self, index: int) -> Sample:
        """Reads one slice's k-space as measured, with the file's mask and target.

        Raises:
          InputError: values are not finite.
        """
        target, where = None, self._where(index)
        with open_file(self.path) as file:
            kspace = self._kspace_in(file, index)
            mask = _small(file, "mask", self.path) if self.undersampled else None
            if self.target:
                target = _slice_of(file[self.target], index, self.path)
            peak = _peak_of(file) if self.target else None
        require_transformable(kspace, where)
        if target is not None and not np.isfinite(target).all():
            raise InputError(
                f"{where} of '{self.target}' holds values that are not finite. Repair "
                "or leave out the file."
            )
        return Sample(
            kspace=np.asarray(kspace, np.complex64),
            mask=mask,
            where=where,
            geometry=self.geometry,
            target=target,
            peak=peak,
        )

    def _kspace(self, index: int) -> np.ndarray:
        with open_file(self.path) as file:
            return self._kspace_in(file, index)

    def _kspace_in(self, file: h5py.File, index: int) -> np.ndarray:
        kspace = _slice_of(file["kspace"], index, self.path)
        return kspace if self.coils > 1 else kspace.reshape(self.shape)

    def _where(self, index: int) -> str:
        return f"{self.path}: slice {index}"


def open_volume(path: Path) -> FastMRIVolume:
    """Reads a file's metadata; raises InputError if the file cannot be used."""
    if not h5py.is_hdf5(path):
        raise InputError(
            f"{path}: is not an HDF5 file, though its name says so. Copy or download "
            "it again."
        )
    with open_file(path) as file:
        kspace = kspace_of(file, path)
        _require_kspace(kspace, path)
        _require_plain_storage(kspace, path)
        geometry, target = _geometry_of(file, path), _target_of(file, path)
        shape = kspace.shape[-2:]
        matrix = geometry.matrix if geometry else shape
        if target:
            matrix = _matrix_of(file[target], len(kspace), geometry, path)
        return FastMRIVolume(
            path=path,
            patient=attribute(file, "patient_id"),
            depth=len(kspace),
            shape=shape,
            coils=math.prod(kspace.shape[1:-2]),
            undersampled="mask" in file,
            geometry=geometry,
            target=target,
            matrix=matrix,
            acquisition=attribute(file, "acquisition"),
        )


def _geometry_of(file: h5py.File, path: Path) -> Geometry | None:
    if "ismrmrd_header" not in file:
        return None
    header = _small(file, "ismrmrd_header", path)
    return geometry_of(header.item() if header.size == 1 else b"", str(path))


def _target_of(file: h5py.File, path: Path) -> str:
    """Returns the name of the dataset of targets; empty if there is none."""
    for name in TARGETS:
        if name in file:
            _require_own(file, name, path)
            return name
    return ""


def _matrix_of(
    target: h5py.Dataset, depth: int, geometry: Geometry | None, path: Path
) -> tuple[int, int]:
    """Returns the rows and columns of a dataset of targets (slices, h, w)."""
    name, shape = _name(target), target.shape
    if shape is None or len(shape) != 3 or len(target) != depth or 0 in shape:
        raise InputError(
            f"{path}: '{name}' has shape {shape}, but the k-space has {depth} slices. "
            "Store one target (h, w) for each slice."
        )
    if target.dtype.kind != "f":
        raise InputError(
            f"{path}: '{name}' has type {target.dtype}. Store magnitudes as float32."
        )
    if math.prod(shape[1:]) > MAX_POINTS:
        raise InputError(
            f"{path}: '{name}' claims the shape {shape}, more than {MAX_POINTS} points "
            "a slice. The file is probably damaged."
        )
    if geometry and shape[1:] != geometry.matrix:
        raise InputError(
            f"{path}: '{name}' has images of {shape[1]} x {shape[2]}, but the header "
            f"tells of {geometry.matrix[0]} x {geometry.matrix[1]} (reconSpace). Copy "
            "the file again, or leave it out."
        )
    _require_plain_storage(target, path)
    return shape[1:]


def to_image(kspace: np.ndarray, where: str) -> np.ndarray:
    """Transforms a slice's centred k-space (..., H, W) into complex64 images.

    Raises:
      InputError: values are not finite; `where` names the slice.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported below
        image = ifft2c(np.asarray(kspace, np.complex64))
    if not np.isfinite(image).all():
        raise InputError(
            f"{where} holds values that are not finite, or too large for float32. "
            "Repair or leave out the file."
        )
    return image


def require_transformable(kspace: np.ndarray, where: str) -> None:
    """Raises InputError, which names the slice, if `to_image` would."""
    largest = float(np.abs(kspace.real).max()) + float(np.abs(kspace.imag).max())
    # No sum in the transform exceeds this product, which NaN makes NaN.
    if not kspace.size * largest < float(np.finfo(np.float32).max):
        to_image(kspace, where)


def open_file(path: Path) -> h5py.File:
    """Opens an HDF5 file for reading."""
    # Reading needs no lock, and network file systems often refuse locks.
    return h5py.File(path, "r", locking=False)


def kspace_of(file: h5py.File, path: Path) -> h5py.Dataset:
    """Returns the dataset `kspace`; raises InputError if the file has none of its own.

    Its shape and type may be any.
    """
    if file.get("kspace", getlink=True) is None:
        raise InputError(
            f"{path}: has no dataset 'kspace', only {sorted(file)[:20]}. Use fastMRI's "
            "layout."
        )
    _require_own(file, "kspace", path)
    return file["kspace"]


def _require_own(file: h5py.File, name: str, path: Path) -> None:
    """Requires that a name stands for an array whose values are in this file."""
    if not isinstance(file.get(name, getlink=True), h5py.HardLink):
        raise InputError(
            f"{path}: '{name}' is a link and may lead to another file. Store the data "
            "itself under that name."
        )
    data = file[name]
    if not isinstance(data, h5py.Dataset):
        raise InputError(f"{path}: '{name}' is a group. Store an array (slices, H, W).")
    if data.is_virtual or data.external:
        raise InputError(
            f"{path}: '{name}' keeps its values in other files. Store them in this one."
        )


def _small(file: h5py.File, name: str, path: Path) -> np.ndarray:
    """A dataset of metadata; InputError for what is larger than any slice, or none."""
    link, data = file.get(name, getlink=True), file[name]
    if (
        not isinstance(link, h5py.HardLink)
        or not isinstance(data, h5py.Dataset)
        or data.size is None
        or data.is_virtual
        or data.external
        or max(data.size, math.prod(data.chunks or ())) > MAX_POINTS
    ):
        raise InputError(
            f"{path}: '{name}' is no array of a slice's size in this file. Copy the "
            "file again, or store it as fastMRI does."
        )
    return np.asarray(data[()])


def _require_kspace(kspace: h5py.Dataset, path: Path) -> None:
    shape, dtype = kspace.shape, kspace.dtype
    if shape is None or len(shape) not in (3, 4):
        raise InputError(
            f"{path}: 'kspace' has shape {shape}. Store an array (slices, H, W), or "
            "(slices, coils, H, W)."
        )
    if dtype.kind != "c":
        raise InputError(
            f"{path}: 'kspace' has type {dtype}, not complex. Store real and "
            "imaginary parts as one complex64 array (slices, H, W)."
        )
    if 0 in shape or kspace.id.get_storage_size() == 0:
        raise InputError(
            f"{path}: 'kspace' of shape {shape} is empty. Leave out the file."
        )
    largest = max(math.prod(shape[1:]), math.prod(kspace.chunks or ()))
    if largest > MAX_POINTS or len(kspace) > MAX_SLICES:
        raise InputError(
            f"{path}: 'kspace' claims the shape {shape}, more than {MAX_POINTS} points "
            f"a slice or chunk, or {MAX_SLICES} slices. The file is probably damaged."
        )


def _require_plain_storage(data: h5py.Dataset, path: Path) -> None:
    """Requires that all chunks are stored, with filters that are safe to undo."""
    if not data.chunks:
        return
    name, stored = _name(data), data.id.get_num_chunks()
    chunks = math.prod(map(math.ceil, np.divide(data.shape, data.chunks)))
    if stored != chunks:
        raise InputError(
            f"{path}: '{name}' of shape {data.shape} has {chunks} chunks, but only "
            f"{stored} are stored. Copy or download the file again, or leave it out."
        )
    filters = _filters(data)
    packers = [number for number in filters if number in _PACKERS]
    inner = [number for number in filters if number != h5py.h5z.FILTER_FLETCHER32]
    known = set(filters) <= {*_PACKERS, *_LENGTH_KEEPERS}
    # `_require_honest_chunks` can look only into what was packed once, and last.
    if not known or (packers and inner[-1:] != packers):
        raise InputError(
            f"{path}: '{name}' is stored with filters that are not read (numbers "
            f"{filters}). Store it with gzip, lzf or without compression."
        )


def _slice_of(data: h5py.Dataset, index: int, path: Path) -> np.ndarray:
    """Reads one slice of k-space or targets."""
    if data.chunks:
        _require_honest_chunks(data, index, path)
    return data[index]


def _require_honest_chunks(data: h5py.Dataset, index: int, path: Path) -> None:
    """Refuses a slice whose chunks hold more than they should.

    HDF5 inflates a chunk to the end of its data, whatever the size of a chunk, so a few
    bytes could take all memory.
    """
    shape, chunk = data.shape, data.chunks
    size = math.prod(chunk) * data.dtype.itemsize
    packed = h5py.h5z.FILTER_DEFLATE in _filters(data)
    across = (range(0, n, c) for n, c in zip(shape[1:], chunk[1:], strict=True))
    for corner in itertools.product([index // chunk[0] * chunk[0]], *across):
        stored = data.id.get_chunk_info_by_coord(corner).size
        # Data that do not compress grow a little.
        honest = stored <= size + size // 8 + 2**10
        if honest and packed:
            _, content = data.id.read_direct_chunk(corner)
            # What is no zlib stream was stored unpacked, or HDF5 will report it.
            with contextlib.suppress(zlib.error):
                content = zlib.decompressobj().decompress(content, size + _CHECKSUM + 1)
                honest = len(content) <= size + _CHECKSUM
        if not honest:
            raise InputError(
                f"{path}: slice {index} is in a chunk of '{_name(data)}' that holds "
                f"more than its {size} bytes. The file is damaged; copy or download it "
                "again."
            )


def _filters(data: h5py.Dataset) -> list[int]:
    created = data.id.get_create_plist()
    return [created.get_filter(number)[0] for number in range(created.get_nfilters())]


def _name(data: h5py.Dataset) -> str:
    return data.name.rpartition("/")[2]


def _peak_of(file: h5py.File) -> float | None:
    """Returns the attribute `max`, the largest target; None if it is no such number."""
    value = np.asarray(file.attrs.get("max", 0))
    if value.size != 1 or value.dtype.kind not in "fiu":
        return None
    return float(value.item()) if 0 < value.item() < np.inf else None


def attribute(file: h5py.File, name: str) -> str:
    """Returns an attribute as text; empty if there is none."""
    value = file.attrs.get(name, "")
    if isinstance(value, bytes):
        value = value.decode(errors="replace")
    return str(value).strip()
