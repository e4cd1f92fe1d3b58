"""Where slices come from: any number of scans as one random-access sequence."""

import contextlib
import dataclasses
import glob
import hashlib
import operator
import os
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path
from typing import Protocol, SupportsIndex

import numpy as np
from tqdm import tqdm

from kst_jax.data import fastmri, nifti, npy
from kst_jax.errors import InputError

DEMO_FOLDER = Path(__file__).parent / "demo"
# Two people: what is learnt from one is tried on the other.
DEMO = {
    "demo:train": DEMO_FOLDER / "sub-0017_T1w.nii.gz",
    "demo:test": DEMO_FOLDER / "sub-0042_T1w.nii.gz",
}


@dataclasses.dataclass(frozen=True)
class About:
    """Where a slice comes from.

    Attributes:
      subject: whose scan it is; splits go by it.
      volume: the file's name without its suffix; unique in a source.
      file: the file's name.
      index: number of the slice in the volume.
      measured: whether the k-space is known to be measured; otherwise it is, or must
        be taken for, simulated from a magnitude.
    """

    subject: str
    volume: str
    file: str
    index: int
    measured: bool


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Slice(About):
    """One slice of a scan.

    Attributes:
      image: complex64 (H, W), laid out for display, in the input's units.
    """

    image: np.ndarray


class Volume(Protocol):
    """What a reader makes of a file: metadata now, slices on demand."""

    path: Path
    subject: str
    measured: bool
    depth: int

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


@dataclasses.dataclass(frozen=True)
class Source:
    """Slices by number, read when asked for: what grain calls random access.

    Holds (volume, slice number) pairs and no open file, so that it can be pickled.
    """

    entries: tuple[tuple[Volume, int], ...]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: SupportsIndex) -> Slice:
        volume, index = self.entries[operator.index(key)]
        with _reading(volume.path):
            image = volume.read(index)
        return Slice(image=image, **vars(self.describe(key)))

    def describe(self, key: SupportsIndex) -> About:
        """What a slice is, without reading it."""
        volume, index = self.entries[operator.index(key)]
        path = volume.path
        return About(volume.subject, _name(path), path.name, index, volume.measured)

    def __repr__(self) -> str:
        return (
            f"Source({len(self)} slices, {len(self.volumes)} volumes, "
            f"{len(self.subjects)} subjects)"
        )

    @property
    def subjects(self) -> tuple[str, ...]:
        """Everyone whose scans are here, sorted."""
        return tuple(sorted({volume.subject for volume, _ in self.entries}))

    @property
    def volumes(self) -> tuple[str, ...]:
        """Names of the volumes, in the order of their slices."""
        return tuple(dict.fromkeys(_name(volume.path) for volume, _ in self.entries))

    @property
    def measured(self) -> bool:
        """Whether every slice's k-space is known to be measured."""
        return all(volume.measured for volume, _ in self.entries)

    def select(self, subjects: Collection[str]) -> "Source":
        """Keep the slices of some subjects; raise InputError for one not here."""
        wanted = set(subjects)
        if unknown := sorted(wanted - set(self.subjects)):
            raise InputError(
                f"subject {unknown[0]} is not in the data. "
                f"There are: {', '.join(self.subjects[:20])}."
            )
        return Source(tuple(e for e in self.entries if e[0].subject in wanted))


def open_source(
    paths: str,
    *,
    plane: str = "axial",
    slices: tuple[float, float] = (0.0, 1.0),
    drop_first: int = 0,
    fraction: float = 1.0,
    seed: int = 0,
    min_foreground: float = 0.05,
) -> Source:
    """Open scans: every file is looked at once, slices are read on demand.

    Args:
      paths: a folder (searched with its subfolders), a file, a pattern such as
        `/data/**/*_T1w.nii.gz`, `demo:train` or `demo:test` for the bundled scans, or
        several of these separated by commas. The kind of a file goes by its suffix:
        .h5 (fastMRI single-coil), .nii, .nii.gz, .hdr/.img (Analyze), .npy (the
        authors' k-space). Other files and hidden ones are ignored.
      plane: axial, coronal or sagittal: how NIfTI and Analyze volumes are cut.
      slices: range (start, stop) of slices to take, as shares of a volume's depth.
      drop_first: number of slices to drop at the start of each volume; the paper
        drops 5 of fastMRI's.
      fraction: share of the remaining slices of each volume to draw at random, at
        least one; the paper draws 0.25 of fastMRI's. The draw depends on seed and
        volume alone, not on the other files.
      seed: of that draw.
      min_foreground: NIfTI and Analyze slices with a smaller share of pixels above
        10 % of the volume's maximum are left out as empty.

    Raises:
      InputError: nothing found, a file that cannot be used, two volumes of one name,
        or an option out of range.
    """
    if plane not in nifti.PLANES:
        raise InputError(f"plane {plane!r}: choose one of {', '.join(nifti.PLANES)}.")
    if not 0 <= slices[0] < slices[1] <= 1:
        raise InputError(f"slices {slices}: give shares with 0 <= start < stop <= 1.")
    if drop_first < 0:
        raise InputError(f"drop_first {drop_first}: give a number of 0 or more.")
    if not 0 < fraction <= 1:
        raise InputError(f"fraction {fraction}: give a share above 0, at most 1.")
    entries: list[tuple[Volume, int]] = []
    for path in tqdm(_find(paths), "Looking at scans", unit="file", delay=3):
        with _reading(path):
            volume = READERS[_suffix(path)](path, plane, min_foreground)
        kept = _keep(volume, slices, drop_first, fraction, seed)
        entries += [(volume, index) for index in kept]
    return Source(tuple(entries))


def split_subjects(
    subjects: Collection[str], fraction: float, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Split people at random into a training share `fraction` and the others.

    Depends on the set of names and the seed alone; both sides get someone.

    Raises:
      InputError: fewer than two subjects, or a fraction outside (0, 1).
    """
    if not 0 < fraction < 1:
        raise InputError(f"split fraction {fraction}: give a share between 0 and 1.")
    order = _shuffled(set(subjects), f"{seed}:split")
    if len(order) < 2:
        raise InputError(
            f"a split needs two subjects, but the data hold {order or 'none'}. Add "
            "another person's scans, or give a test set of its own."
        )
    size = min(max(round(fraction * len(order)), 1), len(order) - 1)
    return tuple(sorted(order[:size])), tuple(sorted(order[size:]))


def require_disjoint(
    one: Source, other: Source, name: str = "test", first: str = "training"
) -> None:
    """Raise InputError where someone's scans are in both of two named sources."""
    if shared := sorted(set(one.subjects) & set(other.subjects)):
        raise InputError(
            f"subject {shared[0]} is in the {first} and in the {name} data "
            f"({len(shared)} shared in all). Split by subject."
        )


def _keep(
    volume: Volume,
    slices: tuple[float, float],
    drop_first: int,
    fraction: float,
    seed: int,
) -> list[int]:
    first = max(round(slices[0] * volume.depth), drop_first)
    stop = round(slices[1] * volume.depth)
    kept = [index for index in volume.slices if first <= index < stop]
    if not kept:
        raise InputError(
            f"{volume.path}: none of its {volume.depth} slices is left after "
            f"drop_first {drop_first} and slices {slices}. Choose a wider range, or "
            "leave out the file."
        )
    count = max(1, round(fraction * len(kept)))
    return sorted(_shuffled(kept, f"{seed}:{_name(volume.path)}")[:count])


def _suffix(path: Path) -> str:
    """Return the known suffix that the file's name ends with, or an empty one."""
    name = path.name.lower()
    return next((s for s in READERS if name.endswith(s)), "")


def _name(path: Path) -> str:
    return path.name[: -len(_suffix(path))]


def _find(paths: str) -> list[Path]:
    parts = [part.strip() for part in paths.split(",") if part.strip()]
    if not parts:
        raise InputError("no path to the data. Name a folder or a file of scans.")
    found = [path for part in parts for path in _find_part(part)]
    files: dict[str, Path] = {}
    for path in {os.path.abspath(path): path for path in found}.values():
        other = files.setdefault(_name(path), path)
        if other != path:
            raise InputError(
                f"{path} and {other}: both would be written as {_name(path)}. Rename "
                "one, or give a pattern that leaves one out."
            )
    return list(files.values())


def _find_part(part: str) -> list[Path]:
    if part in DEMO:
        return [DEMO[part]]
    path = Path(part).expanduser()
    if path.is_dir():
        files = [f for f in path.rglob("*") if not _hidden(f.relative_to(path))]
    elif path.exists():
        files = [path]
    else:
        files = [Path(name) for name in glob.glob(str(path), recursive=True)]
    if not files and not path.exists():
        raise InputError(
            f"{part}: no such file or folder. Check the spelling; the bundled scans "
            f"are {' and '.join(DEMO)}."
        )
    files = [f.with_suffix(".hdr") if f.suffix.lower() == ".img" else f for f in files]
    scans = sorted({f for f in files if _suffix(f) and f.is_file()})
    if not scans:
        raise InputError(
            f"{part}: no scan found. Looked for {', '.join(READERS)}"
            f"{' here and in all subfolders' if path.is_dir() else ''}."
        )
    return scans


def _hidden(path: Path) -> bool:
    """Tell whether a part is hidden, as macOS's `._scan.h5` or datalad's `.git`."""
    return any(part.startswith(".") for part in path.parts)


def _shuffled(items: Collection, salt: str) -> list:
    """Shuffle by salt and the items' text alone, alike in every library version."""
    return sorted(
        items, key=lambda item: hashlib.sha256(f"{salt}:{item}".encode()).digest()
    )


@contextlib.contextmanager
def _reading(path: Path) -> Iterator[None]:
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
