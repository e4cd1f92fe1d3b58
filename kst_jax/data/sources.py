"""Where slices come from: any number of scans as one random-access sequence."""

import dataclasses
import glob
import operator
import os
import sys
from collections.abc import Collection
from pathlib import Path
from typing import SupportsIndex

import numpy as np
from tqdm import tqdm

from kst_jax.config import Selection
from kst_jax.data.readers.nifti import beside
from kst_jax.data.volumes import (
    READERS,
    Volume,
    name_of,
    open_volume,
    reading,
    selected,
    shuffled,
    suffix_of,
)
from kst_jax.errors import InputError

DEMO_FOLDER = Path(__file__).parent / "demo"
# Two people: what is learnt from one is tried on the other.
DEMO = {
    "demo:train": DEMO_FOLDER / "sub-0017_T1w.nii.gz",
    "demo:test": DEMO_FOLDER / "sub-0042_T1w.nii.gz",
    "demo:undersampled": DEMO_FOLDER / "sub-0042_uniform1d_5x.h5",
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


@dataclasses.dataclass(frozen=True, repr=False)
class Source:
    """Slices by number, read when asked for: what grain calls random access.

    Holds (volume, slice number) pairs and no open file, so that it can be pickled.
    """

    entries: tuple[tuple[Volume, int], ...]

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: SupportsIndex) -> Slice:
        volume, index = self.entries[operator.index(key)]
        with reading(volume.path):
            image = volume.read(index)
        return Slice(image=image, **vars(self.describe(key)))

    def describe(self, key: SupportsIndex) -> About:
        """What a slice is, without reading it."""
        volume, index = self.entries[operator.index(key)]
        path = volume.path
        return About(volume.subject, name_of(path), path.name, index, volume.measured)

    def __str__(self) -> str:
        counts = {
            "slices": len(self),
            "volumes": len(self.volumes),
            "people": len(self.subjects),
        }
        return ", ".join(f"{name}: {count}" for name, count in counts.items())

    @property
    def subjects(self) -> tuple[str, ...]:
        """Everyone whose scans are here, sorted."""
        return tuple(sorted({volume.subject for volume, _ in self.entries}))

    @property
    def volumes(self) -> tuple[str, ...]:
        """Names of the volumes, in the order of their slices."""
        return tuple(dict.fromkeys(name_of(volume.path) for volume, _ in self.entries))

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


def open_source(paths: str, selection: Selection | None = None) -> Source:
    """Open scans: every file is looked at once, slices are read on demand.

    Args:
      paths: a folder (searched with its subfolders), a file, a pattern such as
        `/data/**/*_T1w.nii.gz`, `demo:train` or `demo:test` for the bundled scans, or
        several of these separated by commas. The kind of a file goes by its suffix:
        .h5 (fastMRI single-coil), .nii, .nii.gz, .hdr/.img (Analyze), .npy (the
        authors' k-space). Other files and hidden ones are ignored.
      selection: which slices are taken; by default all that hold something.

    Raises:
      InputError: nothing found, a file that cannot be used, or two volumes of one name.
    """
    selection = selection or Selection()
    entries: list[tuple[Volume, int]] = []
    doubts: list[str] = []
    for path in tqdm(find(paths), "Looking at scans", unit="file", delay=3):
        volume = open_volume(path, selection)
        doubts += [f"{path}: {doubt}" for doubt in volume.doubts]
        entries += [(volume, index) for index in selected(volume, selection)]
    _warn(doubts)
    return Source(tuple(entries))


def _warn(doubts: list[str]) -> None:
    """Prints the first of the doubts about scans, and how many more there are."""
    for doubt in doubts[:1]:
        more = f" So do {len(doubts) - 1} more; see kst-doctor." if doubts[1:] else ""
        print(f"warning: {doubt}{more}", file=sys.stderr)


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
    order = shuffled(set(subjects), f"{seed}:split")
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


def find(paths: str) -> list[Path]:
    """Find the scans' files that `open_source` would open.

    Raises:
      InputError: nothing found, or two volumes of one name.
    """
    found = [item for part in parts_of(paths) for item in find_part(part)]
    found = list({os.path.abspath(item): item for item in found}.values())
    require_own_names(found)
    return found


def require_own_names(found: Collection[Path]) -> None:
    """Raise InputError where results of two scans would be written to one name."""
    scans: dict[str, Path] = {}
    for path in found:
        other = scans.setdefault(name_of(path), path)
        if other != path:
            raise InputError(
                f"{path} and {other}: both would be written as {name_of(path)}. Rename "
                "one, or give a pattern that leaves one out."
            )


def parts_of(paths: str) -> list[str]:
    """The folders, files and patterns in a list with commas; InputError for none."""
    parts = [part.strip() for part in paths.split(",") if part.strip()]
    if not parts:
        raise InputError("no path to the data. Name a folder or a file of scans.")
    return parts


def find_part(part: str) -> list[Path]:
    """Find what one of the paths in a list stands for.

    Raises:
      InputError: no scan found.
    """
    path = Path(part).expanduser()
    files = [
        beside(f, ".hdr") if f.suffix.lower() == ".img" else f for f in everything(part)
    ]
    # What is no file is refused when it is opened.
    scans = sorted({f for f in files if suffix_of(f) and not f.is_dir()})
    if not scans:
        raise InputError(
            f"{part}: no scan found. Looked for {', '.join(READERS)}"
            f"{' here and in all subfolders' if path.is_dir() else ''}."
        )
    return scans


def everything(part: str) -> list[Path]:
    """All that lies in a folder and its subfolders, matches a pattern or is named.

    Scans or not, files or not; without what is hidden in a folder.

    Raises:
      InputError: nothing has this name.
    """
    if part in DEMO:
        return [DEMO[part]]
    path = Path(part).expanduser()
    if path.is_dir():
        return [f for f in path.rglob("*") if not _hidden(f.relative_to(path))]
    if path.exists():
        return [path]
    files = _matches(path)
    if not files:
        raise InputError(
            f"{part}: no such file or folder. Check the spelling; the bundled scans "
            f"are {' and '.join(DEMO)}."
        )
    return files


def _matches(pattern: Path) -> list[Path]:
    """Paths that match; `**` does not follow links to folders, which may be loops."""
    parts = pattern.parts
    first = next((n for n, p in enumerate(parts) if glob.has_magic(p)), len(parts))
    if first == len(parts):
        return []
    folder, rest = Path(*parts[:first]), str(Path(*parts[first:]))
    found = folder.glob(f"{rest}/*" if parts[-1] == "**" else rest)
    return [path for path in found if not _hidden(path.relative_to(folder))]


def _hidden(path: Path) -> bool:
    """Tell whether a part is hidden, as macOS's `._scan.h5` or datalad's `.git`."""
    return any(part.startswith(".") for part in path.parts)
