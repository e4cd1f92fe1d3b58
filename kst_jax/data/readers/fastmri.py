"""fastMRI's single-coil HDF5 files: measured k-space with its phase."""

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
from kst_jax.data.samples import Sample
from kst_jax.errors import InputError

# Far beyond any scan; keeps a damaged header from claiming all memory.
MAX_POINTS = 2**26  # in one slice or one HDF5 chunk: 512 MiB of complex64
MAX_SLICES = 2**16
_CHECKSUM = 4  # bytes that fletcher32 adds to a chunk
_PACKERS = (h5py.h5z.FILTER_DEFLATE, h5py.h5z.FILTER_LZF)
_LENGTH_KEEPERS = (h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32)


@dataclasses.dataclass(frozen=True)
class FastMRIVolume:
    """One file in fastMRI's single-coil layout.

    Attributes:
      path: the file. It is opened again for every slice, so that the volume can be
        pickled and read in several processes.
      patient: the attribute `patient_id`; empty if there is none.
      depth: number of slices.
      undersampled: whether the file has a mask, so that its k-space is incomplete.
    """

    path: Path
    patient: str
    depth: int
    undersampled: bool = False
    doubts: ClassVar[tuple[str, ...]] = ()
    measured: ClassVar[bool] = True

    @property
    def slices(self) -> range:
        """Numbers of the slices that can be read."""
        return range(self.depth)

    def read(self, index: int) -> np.ndarray:
        """Reads one slice as a complex64 image (H, W), in the units of its k-space."""
        return to_image(self._kspace(index), self._where(index))

    def sample(self, index: int) -> Sample:
        """Reads one slice's k-space as measured, and the file's mask if it has one.

        Raises:
          InputError: values are not finite, or the file's header is damaged.
        """
        kspace, where = self._kspace(index), self._where(index)
        to_image(kspace, where)  # refuses values that cannot be transformed
        with open_file(self.path) as file:
            mask = _small(file, "mask", self.path) if self.undersampled else None
            geometry = None
            if "ismrmrd_header" in file:
                header = _small(file, "ismrmrd_header", self.path).item()
                geometry = geometry_of(header, str(self.path))
        return Sample(
            kspace=np.asarray(kspace, np.complex64),
            mask=mask,
            where=where,
            geometry=geometry,
        )

    def _kspace(self, index: int) -> np.ndarray:
        with open_file(self.path) as file:
            kspace = file["kspace"]
            if kspace.chunks:
                _require_honest_chunks(kspace, index, self.path)
            return kspace[index]

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
        _require_single_coil(kspace, path)
        if kspace.chunks:
            _require_plain_storage(kspace, path)
        return FastMRIVolume(path, patient_of(file), len(kspace), "mask" in file)


def to_image(kspace_HxW: np.ndarray, where: str) -> np.ndarray:
    """Transforms a slice's centred k-space into a complex64 image (H, W).

    Raises:
      InputError: values are not finite; `where` names the slice.
    """
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported below
        image_HxW = ifft2c(np.asarray(kspace_HxW, np.complex64))
    if not np.isfinite(image_HxW).all():
        raise InputError(
            f"{where} holds values that are not finite, or too large for float32. "
            "Repair or leave out the file."
        )
    return image_HxW


def open_file(path: Path) -> h5py.File:
    """Opens an HDF5 file for reading."""
    # Reading needs no lock, and network file systems often refuse locks.
    return h5py.File(path, "r", locking=False)


def kspace_of(file: h5py.File, path: Path) -> h5py.Dataset:
    """Returns the dataset `kspace`; raises InputError if the file has none of its own.

    Its shape and type may be any.
    """
    link = file.get("kspace", getlink=True)
    if link is None:
        raise InputError(
            f"{path}: has no dataset 'kspace', only {sorted(file)[:20]}. Use fastMRI's "
            "single-coil layout."
        )
    if not isinstance(link, h5py.HardLink):
        raise InputError(
            f"{path}: 'kspace' is a link and may lead to another file. Store the data "
            "itself under that name."
        )
    kspace = file["kspace"]
    if not isinstance(kspace, h5py.Dataset):
        raise InputError(f"{path}: 'kspace' is a group. Store an array (slices, H, W).")
    if kspace.is_virtual or kspace.external:
        raise InputError(
            f"{path}: 'kspace' keeps its values in other files. Store them in this one."
        )
    return kspace


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


def _require_single_coil(kspace: h5py.Dataset, path: Path) -> None:
    shape, dtype = kspace.shape, kspace.dtype
    if shape is not None and len(shape) == 4 and dtype.kind == "c":
        raise InputError(
            f"{path}: multi-coil k-space of shape {shape}, but this reader takes "
            "single-coil (slices, H, W). Combine the coils first."
        )
    if shape is None or len(shape) != 3:
        raise InputError(
            f"{path}: 'kspace' has shape {shape}. Store an array (slices, H, W)."
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


def _require_plain_storage(kspace: h5py.Dataset, path: Path) -> None:
    """Requires that all chunks are stored, with filters that are safe to undo."""
    stored = kspace.id.get_num_chunks()
    chunks = math.prod(map(math.ceil, np.divide(kspace.shape, kspace.chunks)))
    if stored != chunks:
        raise InputError(
            f"{path}: 'kspace' of shape {kspace.shape} has {chunks} chunks, but only "
            f"{stored} are stored. Copy or download the file again, or leave it out."
        )
    filters = _filters(kspace)
    packers = [number for number in filters if number in _PACKERS]
    inner = [number for number in filters if number != h5py.h5z.FILTER_FLETCHER32]
    known = set(filters) <= {*_PACKERS, *_LENGTH_KEEPERS}
    # `_require_honest_chunks` can look only into what was packed once, and last.
    if not known or (packers and inner[-1:] != packers):
        raise InputError(
            f"{path}: 'kspace' is stored with filters that are not read (numbers "
            f"{filters}). Store it with gzip, lzf or without compression."
        )


def _require_honest_chunks(kspace: h5py.Dataset, index: int, path: Path) -> None:
    """Refuses a slice whose chunks hold more than they should.

    HDF5 inflates a chunk to the end of its data, whatever the size of a chunk, so a few
    bytes could take all memory.
    """
    shape, chunk = kspace.shape, kspace.chunks
    size = math.prod(chunk) * kspace.dtype.itemsize
    packed = h5py.h5z.FILTER_DEFLATE in _filters(kspace)
    across = (range(0, n, c) for n, c in zip(shape[1:], chunk[1:], strict=True))
    for corner in itertools.product([index // chunk[0] * chunk[0]], *across):
        stored = kspace.id.get_chunk_info_by_coord(corner).size
        # Data that do not compress grow a little.
        honest = stored <= size + size // 8 + 2**10
        if honest and packed:
            _, data = kspace.id.read_direct_chunk(corner)
            # What is no zlib stream was stored unpacked, or HDF5 will report it.
            with contextlib.suppress(zlib.error):
                data = zlib.decompressobj().decompress(data, size + _CHECKSUM + 1)
                honest = len(data) <= size + _CHECKSUM
        if not honest:
            raise InputError(
                f"{path}: slice {index} is in a chunk of 'kspace' that holds more than "
                f"its {size} bytes. The file is damaged; copy or download it again."
            )


def _filters(kspace: h5py.Dataset) -> list[int]:
    created = kspace.id.get_create_plist()
    return [created.get_filter(number)[0] for number in range(created.get_nfilters())]


def patient_of(file: h5py.File) -> str:
    """Returns the attribute `patient_id`; empty if there is none."""
    patient = file.attrs.get("patient_id", "")
    if isinstance(patient, bytes):
        patient = patient.decode(errors="replace")
    return str(patient).strip()
