"""NumPy files in the layout of the paper's authors: k-space and banks of masks."""

import dataclasses
import math
import threading
from pathlib import Path
from typing import ClassVar

import numpy as np

from kst_jax.data.readers.fastmri import MAX_POINTS, MAX_SLICES, to_image
from kst_jax.data.samples import Sample
from kst_jax.errors import InputError
from kst_jax.programs import files

# numpy reads headers with `ast`, which in Python 3.11 now and then fails in threads
# ("AST constructor recursion depth mismatch").
_PARSING = threading.Lock()
_MAX_BANK = 2**28  # points of all masks: 16,384 masks of 128x128
_MAX_HEADER = 2**16  # bytes, what version 1 of the format can say


@dataclasses.dataclass(frozen=True)
class NpyVolume:
    """One array of k-space: (N, H, W, 2) real and imaginary, or complex (N, H, W).

    The file says neither whose slices it holds nor where they come from. So one file
    counts as one subject, and its k-space as simulated (`measured` False): output
    then claims no more than is known.

    Attributes:
      path: the file; it is mapped into memory anew for every slice.
      subject: the file's stem.
      depth: number of slices N.
    """

    path: Path
    subject: str
    depth: int
    doubts: ClassVar[tuple[str, ...]] = ()
    measured: ClassVar[bool] = False
    undersampled: ClassVar[bool] = False

    @property
    def slices(self) -> range:
        """Numbers of the slices that can be read."""
        return range(self.depth)

    def read(self, index: int) -> np.ndarray:
        """Complex64 image (H, W) of one slice, in the units of the file's k-space."""
        return to_image(self._kspace(index), f"{self.path}: slice {index}")

    def sample(self, index: int) -> Sample:
        """K-space of one slice; what was not measured is zero in it."""
        kspace, where = self._kspace(index), f"{self.path}: slice {index}"
        to_image(kspace, where)  # refuses values that cannot be transformed
        return Sample(kspace=kspace.astype(np.complex64), mask=None, where=where)

    def _kspace(self, index: int) -> np.ndarray:
        kspace = memory_map(self.path)[index]
        if kspace.dtype.kind != "f":
            return kspace
        with np.errstate(over="ignore", invalid="ignore"):  # `to_image` reports it
            channels = np.ascontiguousarray(kspace, np.float32)
        return channels.view(np.complex64)[..., 0]


def open_volume(path: Path) -> NpyVolume:
    """Look at a file's header; raise InputError where it is not k-space."""
    array = memory_map(path)
    shape, kind = array.shape, array.dtype.kind
    if not (
        (kind == "f" and len(shape) == 4 and shape[-1] == 2)
        or (kind == "c" and len(shape) == 3)
    ):
        raise InputError(
            f"{path}: holds {array.dtype} of shape {shape}, but k-space is float "
            "(N, H, W, 2) or complex (N, H, W). Name the k-space file itself, not the "
            "folder, where masks or other arrays lie beside it."
        )
    if math.prod(shape[1:3]) > MAX_POINTS or len(array) > MAX_SLICES:
        raise InputError(
            f"{path}: shape {shape} means more than {MAX_POINTS} points a slice or "
            f"{MAX_SLICES} slices. Check the order of its axes, or divide the file."
        )
    return NpyVolume(path, path.stem, len(array))


def read_mask_bank(path: str | Path) -> np.ndarray:
    """Read the authors' undersampling masks (M, H, W), True where sampled.

    Raises:
      InputError: the file is unreadable, has another rank, values besides 0 and 1, or
        a mask without a sampled point.
    """
    bank = memory_map(Path(path).expanduser())
    if bank.ndim != 3:
        raise InputError(
            f"{path}: has shape {bank.shape}. A bank of masks is (M, H, W)."
        )
    if bank.size > _MAX_BANK:
        raise InputError(
            f"{path}: shape {bank.shape} means more than {_MAX_BANK} points. Keep "
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
    """Map the file's array, so that only what is touched is read; never unpickle."""
    files.require_ordinary(path)
    try:
        _require_short_header(path)
        with _PARSING:
            array = np.lib.format.open_memmap(path, mode="r")
    except Exception as error:  # damaged headers fail in many ways inside numpy
        raise InputError(
            f"{path}: not a readable .npy file ({error}). Check that it is complete "
            "and was saved with numpy.save without pickled objects."
        ) from error
    if array.size == 0:
        raise InputError(
            f"{path}: empty array of shape {array.shape}. Leave out the file."
        )
    return array


def _require_short_header(path: Path) -> None:
    """Versions 2 and 3 may claim 4 GiB of header, which numpy would read at once."""
    with path.open("rb") as file:
        start = file.read(12)
    size = int.from_bytes(start[8:12], "little")
    if start[6:7] > b"\1" and size > _MAX_HEADER:
        raise ValueError(f"a header of {size} bytes")
