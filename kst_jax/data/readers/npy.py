"""NumPy files in the layout of the paper's authors: k-space and mask banks."""

import dataclasses
import math
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np

from kst_jax.data.readers.fastmri import (
    MAX_POINTS,
    MAX_SLICES,
    require_transformable,
    to_image,
)
from kst_jax.data.samples import Sample
from kst_jax.errors import InputError
from kst_jax.programs import files

# NumPy parses headers with `ast`, which sometimes fails in threads in Python 3.11
# ("AST constructor recursion depth mismatch").
_PARSING = threading.Lock()
_MAX_BANK = 2**28  # points in all masks together: 16,384 masks of 128x128
_MAX_HEADER = 2**16  # bytes; the limit of the format's version 1


@dataclasses.dataclass(frozen=True)
class NpyVolume:
    """One array of k-space: (N, H, W, 2) real and imaginary, or complex (N, H, W).

    The file does not say whose slices it holds or how they were made. So one file
    counts as one subject, and its k-space as simulated (`measured` is False), which
    keeps results from claiming too much.

    Attributes:
      path: the file; it is mapped into memory again for every slice.
      depth: number of slices N.
      shape: rows and columns (H, W).
    """

    path: Path
    depth: int
    shape: tuple[int, int]
    doubts: ClassVar[tuple[str, ...]] = ()
    measured: ClassVar[bool] = False
    undersampled: ClassVar[bool] = False
    patient: ClassVar[str] = ""  # the file names nobody
    coils: ClassVar[int] = 1
    geometry: ClassVar[None] = None
    pixel: ClassVar[None] = None
    acquisition: ClassVar[str] = ""

    @property
    def matrix(self) -> tuple[int, int]:
        """Rows and columns of the images: those of the k-space."""
        return self.shape

    @property
    def slices(self) -> range:
        """Numbers of the slices that can be read."""
        return range(self.depth)

    def sampled(self, index: int) -> None:
        """The file does not say which points were measured."""

    def read(self, index: int) -> np.ndarray:
        """Reads one slice as a complex64 image (H, W), in the units of its k-space."""
        return to_image(self._kspace(index), f"{self.path}: slice {index}")

    def sample(self, index: int) -> Sample:
        """Reads one slice's k-space, which is zero where it was not measured."""
        kspace, where = self._kspace(index), f"{self.path}: slice {index}"
        require_transformable(kspace, where)
        return Sample(kspace=kspace.astype(np.complex64), mask=None, where=where)

    def _kspace(self, index: int) -> np.ndarray:
        kspace = memory_map(self.path)[index]
        if kspace.dtype.kind != "f":
            return kspace
        with np.errstate(over="ignore", invalid="ignore"):  # `to_image` reports it
            channels = np.ascontiguousarray(kspace, np.float32)
        return channels.view(np.complex64)[..., 0]


def open_volume(path: Path) -> NpyVolume:
    """Reads a file's header; raises InputError if the file is not k-space."""
    array = memory_map(path)
    shape, kind = array.shape, array.dtype.kind
    if not (
        (kind == "f" and len(shape) == 4 and shape[-1] == 2)
        or (kind == "c" and len(shape) == 3)
    ):
        raise InputError(
            f"{path}: holds {array.dtype} of shape {shape}, but k-space is float "
            "(N, H, W, 2) or complex (N, H, W). If a folder also holds masks or other "
            "arrays, give the k-space file itself instead."
        )
    if math.prod(shape[1:3]) > MAX_POINTS or len(array) > MAX_SLICES:
        raise InputError(
            f"{path}: shape {shape} means more than {MAX_POINTS} points a slice or "
            f"{MAX_SLICES} slices. Check the order of its axes, or split the file."
        )
    return NpyVolume(path, len(array), shape[1:3])


def read_mask_bank(path: str | Path) -> np.ndarray:
    """Reads the authors' undersampling masks (M, H, W), True where sampled.

    Raises:
      InputError: the file is unreadable, has another rank, holds values other than 0
        and 1, or holds a mask without a sampled point.
    """
    bank = memory_map(Path(path).expanduser())
    if bank.ndim != 3:
        raise InputError(
            f"{path}: has shape {bank.shape}. Store masks as one array (M, H, W)."
        )
    if bank.size > _MAX_BANK:
        raise InputError(
            f"{path}: shape {bank.shape} means more than {_MAX_BANK} points. Store "
            "fewer masks."
        )
    if bank.dtype.kind not in "biuf" or not ((bank == 0) | (bank == 1)).all():
        raise InputError(
            f"{path}: holds values besides 0 and 1. Store masks as booleans."
        )
    masks = np.asarray(bank, bool)
    empty = np.flatnonzero(~masks.any(axis=(1, 2)))
    if empty.size:
        raise InputError(
            f"{path}: mask {empty[0]} has no sampled point. Remove such masks."
        )
    return masks


def memory_map(path: Path) -> np.ndarray:
    """Maps a file's array into memory, so that only what is used is read.

    Raises:
      InputError: the file is damaged, or holds pickled objects, which are never loaded.
    """
    files.require_ordinary(path)
    try:
        _require_short_header(path)
        with _PARSING:
            array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # damaged headers fail in many ways inside NumPy
        raise InputError(
            f"{path}: not a readable .npy file ({error}). Check that it is complete "
            "and that numpy.save wrote it without pickled objects."
        ) from error
    if array.size == 0:
        raise InputError(
            f"{path}: holds an empty array of shape {array.shape}. Leave out the file."
        )
    return array


def _require_short_header(path: Path) -> None:
    """Raises ValueError for a huge header: NumPy would read up to 4 GiB at once."""
    with path.open("rb") as file:
        start = file.read(12)
    size = int.from_bytes(start[8:12], "little")
    if start[6:7] > b"\1" and size > _MAX_HEADER:
        raise ValueError(f"a header of {size} bytes")
