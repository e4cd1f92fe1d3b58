"""One scan: what opens it, what it is called, and which of its slices are taken."""

import argparse
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np

from kst_jax.config import Selection
from kst_jax.data.readers import fastmri, nifti, npy
from kst_jax.errors import InputError
from kst_jax.programs import files


class Volume(Protocol):
    """What a reader makes of a scan: metadata now, slices on demand.

    Attributes:
      path: the scan's file.
      subject: whose scan it is.
      measured: whether the k-space is known to be measured.
      depth: number of slices, empty ones too.
    """

    @property
    def path(self) -> Path:
        """The scan's file."""

    @property
    def subject(self) -> str:
        """Whose scan it is."""

    @property
    def measured(self) -> bool:
        """Whether the k-space is known to be measured."""

    @property
    def depth(self) -> int:
        """Number of slices, empty ones too."""

    @property
    def slices(self) -> Sequence[int]:
        """Numbers below `depth` of the slices that hold something."""

    def read(self, index: int) -> np.ndarray:
        """Complex64 image (H, W) of one slice."""


# What opens each kind of file, given its path, the plane and the least foreground.
READERS: dict[str, Callable[[Path, str, float], Volume]] = {
    ".h5": lambda path, *_: fastmri.open_volume(path),
    ".npy": lambda path, *_: npy.open_volume(path),
    ".nii": nifti.open_volume,
    ".nii.gz": nifti.open_volume,
    ".hdr": nifti.open_volume,  # its .img comes with it
}


def selected(volume: Volume, selection: Selection) -> list[int]:
    """Numbers of the slices taken; raise InputError where none is left."""
    first = max(round(selection.slices[0] * volume.depth), selection.drop_first)
    stop = round(selection.slices[1] * volume.depth)
    kept = [index for index in volume.slices if first <= index < stop]
    if not kept:
        raise InputError(
            f"{volume.path}: none of its {volume.depth} slices is left after "
            f"drop_first {selection.drop_first} and slices {selection.slices}. Choose "
            "a wider range, or leave out the file."
        )
    count = max(1, round(selection.fraction * len(kept)))
    return sorted(shuffled(kept, f"{selection.seed}:{name_of(volume.path)}")[:count])


def open_volume(path: Path, selection: Selection) -> Volume:
    """Look at a scan's file; raise InputError where it cannot be used."""
    require_file(path)
    with reading(path):
        reader = READERS[suffix_of(path)]
        return reader(path, selection.plane, selection.min_foreground)


def add_options(parser: argparse.ArgumentParser) -> None:
    """Adds the fields of `Selection` to a command line."""
    add, default = parser.add_argument, Selection()
    add(
        "--plane",
        default=default.plane,
        help=f"how NIfTI and Analyze volumes are cut: axial, coronal or sagittal "
        f"({default.plane})",
    )
    add(
        "--slices",
        type=float,
        nargs=2,
        default=default.slices,
        metavar=("START", "STOP"),
        help="part of each volume to take, as shares of its slices (0 1)",
    )
    add(
        "--drop_first",
        type=int,
        default=default.drop_first,
        help="slices left out at the start of each volume (0)",
    )
    add(
        "--fraction",
        type=float,
        default=default.fraction,
        help="share of each volume's slices to draw (1)",
    )
    add("--seed", type=int, default=default.seed, help="seed of that draw (0)")
    add(
        "--min_foreground",
        type=float,
        default=default.min_foreground,
        help="slices with a smaller share of bright pixels are left out as empty, of "
        f"NIfTI and Analyze volumes ({default.min_foreground})",
    )


def selection_of(args: argparse.Namespace) -> Selection:
    """The `Selection` that a command line asks for; InputError for one out of range."""
    names = [field.name for field in dataclasses.fields(Selection)]
    options = {name: getattr(args, name) for name in names}
    return Selection(**options | {"slices": tuple(args.slices)})


def require_file(path: Path) -> None:
    """Raises InputError for what has the name of a scan and is none.

    A link that leads nowhere (datalad and git-annex leave one of what was not fetched),
    a pipe, which would be read for ever, or a header whose .img is there without it.
    """
    files.require_ordinary(path)
    if path.exists():
        return
    what, remedy = "missing, though its .img is there", "Copy both files"
    if path.is_symlink():
        what, remedy = "a link that leads nowhere", "Fetch the file it stands for"
    raise InputError(f"{path}: is {what}. {remedy}, or leave it out by a pattern.")


def suffix_of(path: Path) -> str:
    """Return the known suffix that the file's name ends with, or an empty one."""
    name = path.name.lower()
    return next((s for s in READERS if name.endswith(s)), "")


def name_of(path: Path) -> str:
    """Name of a scan: its file's without the suffix."""
    return path.name[: -len(suffix_of(path))]


def shuffled(items: Collection, salt: str) -> list:
    """Shuffle by salt and the items' text alone, alike in every library version."""

    def digest(item: object) -> bytes:
        return hashlib.sha256(files.encoded(f"{salt}:{item}")).digest()

    return sorted(items, key=digest)


@contextlib.contextmanager
def reading(path: Path) -> Iterator[None]:
    """Turn whatever fails inside a library, on reading `path`, into an InputError."""
    try:
        yield
    except InputError:
        raise
    except Exception as error:  # damaged files fail in many ways inside the libraries
        cause = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"{path}: cannot be read ({cause}). Check that the file is complete and "
            "readable; copy or download it again."
        ) from error
