"""Sources of slices: any number of scans as one random-access sequence."""

import collections
import dataclasses
import operator
import sys
from collections.abc import Collection
from typing import SupportsIndex

import numpy as np
from tqdm import tqdm

from kst_jax.data import finding, labels, receivers
from kst_jax.data.receivers import Receiver, Receivers
from kst_jax.data.samples import Sample
from kst_jax.data.volumes import (
    Volume,
    doubt_of_zeros,
    fingerprint,
    name_of,
    open_volume,
    reading,
    selected,
    shuffled,
)
from kst_jax.data_config import Selection
from kst_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class About:
    """Where a slice comes from.

    Attributes:
      subject: person whose scan it is; splits are by subject.
      volume: name of the scan in results; unique in a source.
      file: the file's name, with folders before it if another file has the same stem.
      index: index of the slice in the volume.
      measured: whether the k-space is known to be measured; otherwise it is simulated
        from a magnitude image, or may be.
      acquisition: how the scan was made, such as fastMRI's "CORPD_FBK"; empty if its
        file does not say.
    """

    subject: str
    volume: str
    file: str
    index: int
    measured: bool
    acquisition: str


@dataclasses.dataclass(frozen=True, eq=False, kw_only=True)
class Slice(About):
    """One slice of a scan.

    Attributes:
      image: complex64 (H, W), or (C, H, W) of several coils, oriented for display, in
        the input's units.
    """

    image: np.ndarray


@dataclasses.dataclass(frozen=True)
class Scan:
    """A scan with its labels, which `kst_jax.data.labels` chooses.

    Attributes:
      volume: what the reader made of the file.
      file: as in About.
      subject: as in About.
    """

    volume: Volume
    file: str
    subject: str

    @property
    def name(self) -> str:
        """Name of the scan in results."""
        return labels.result_name(self.file)


@dataclasses.dataclass(frozen=True, repr=False)
class Source:
    """Random access to slices, as grain needs it; slices are read on demand.

    It holds no open file, so it can be pickled.

    Attributes:
      entries: pairs of a scan and the index of a slice.
      receivers: maps of the coils, for `receiver`; None for one coil.
    """

    entries: tuple[tuple[Scan, int], ...]
    receivers: Receivers | None = None

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, key: SupportsIndex) -> Slice:
        scan, index = self.entries[operator.index(key)]
        with reading(scan.volume.path):
            image = scan.volume.read(index)
        return Slice(image=image, **vars(self.describe(key)))

    def sample(self, key: SupportsIndex) -> Sample:
        """Reads a slice's k-space as measured."""
        scan, index = self.entries[operator.index(key)]
        with reading(scan.volume.path):
            return scan.volume.sample(index)

    def receiver(
        self, key: SupportsIndex, coil_set: int, shape: tuple[int, int]
    ) -> Receiver | None:
        """Reads how a set of coils sees a slice of a shape; None for one coil.

        Only scans of one coil have several sets, of simulated coils.
        """
        if self.receivers is None:
            return None
        scan, index = self.entries[operator.index(key)]
        maps, compression = self.receivers.read(scan.name, coil_set, index)
        true = None
        if scan.volume.coils == 1:
            count = compression.shape[1]
            true = receivers.simulated(scan.subject, coil_set, shape, count)
        return Receiver(maps, compression, true)

    def describe(self, key: SupportsIndex) -> About:
        """Says where a slice comes from, without reading it."""
        scan, index = self.entries[operator.index(key)]
        return About(
            scan.subject,
            scan.name,
            scan.file,
            index,
            scan.volume.measured,
            scan.volume.acquisition,
        )

    def __str__(self) -> str:
        counts = {
            "slices": len(self),
            "volumes": len(self.volumes),
            "people": len(self.subjects),
        }
        return ", ".join(f"{name}: {count}" for name, count in counts.items())

    @property
    def subjects(self) -> tuple[str, ...]:
        """The people whose scans these are, sorted."""
        return tuple(sorted({scan.subject for scan, _ in self.entries}))

    @property
    def files(self) -> frozenset[str]:
        """Paths of the scans' files; links to folders are resolved."""
        return frozenset(finding.own_path(scan.volume.path) for scan, _ in self.entries)

    @property
    def unlabelled_folders(self) -> frozenset[str]:
        """Names of all folders above scans whose subject is only the file's stem."""
        paths = {
            scan.volume.path.absolute()
            for scan, _ in self.entries
            if scan.subject == name_of(scan.volume.path)
        }
        return frozenset(part for path in paths for part in path.parent.parts)

    @property
    def volumes(self) -> tuple[str, ...]:
        """Names of the volumes, in the order of their slices."""
        return tuple(dict.fromkeys(scan.name for scan, _ in self.entries))

    @property
    def fingerprints(self) -> dict[str, dict[str, int | str]]:
        """What tells each volume from others of its name.

        These are `bytes` and `sampled_sha256` of its files, and the number of `slices`.
        """
        counts = collections.Counter(scan.name for scan, _ in self.entries)
        paths = {scan.name: scan.volume.path for scan, _ in self.entries}
        return {
            name: {**fingerprint(path), "slices": counts[name]}
            for name, path in paths.items()
        }

    @property
    def measured(self) -> bool:
        """Whether the k-space of all slices is known to be measured."""
        return all(scan.volume.measured for scan, _ in self.entries)

    def select(self, subjects: Collection[str]) -> "Source":
        """Keeps the slices of some subjects; raises InputError for an unknown one."""
        wanted = set(subjects)
        if unknown := sorted(wanted - set(self.subjects)):
            raise InputError(
                f"subject {unknown[0]} is not in the data. "
                f"There are: {', '.join(self.subjects[:20])}."
            )
        kept = tuple(e for e in self.entries if e[0].subject in wanted)
        return dataclasses.replace(self, entries=kept)


def open_source(
    paths: str, selection: Selection | None = None, *, undersampled: bool = False
) -> Source:
    """Opens scans: reads the metadata of every file; slices are read on demand.

    Prints warnings about doubtful labels of people and doubtful scans.

    Args:
      paths: a folder (searched with its subfolders), a file, a pattern such as
        `/data/**/*_T1w.nii.gz`, `demo:train` or `demo:test` for the bundled scans, or
        several of these separated by commas. Suffixes tell the format: .h5 (fastMRI
        single-coil), .nii, .nii.gz, .hdr/.img (Analyze), .npy (the authors' k-space).
        Other files and hidden ones are ignored.
      selection: which slices to use, by default all that are not empty, and whose they
        are.
      undersampled: whether scans may be undersampled.

    Raises:
      InputError: no scan is found, a file cannot be used, or scans cannot be told
        apart.
    """
    selection = selection or Selection()
    found = finding.find(paths)
    names = labels.file_names([scan.path for scan in found])
    volumes: list[Volume] = []
    chosen: list[list[int]] = []
    doubts: list[str] = []
    bar = tqdm(found, "Looking at scans", unit="file", delay=3)
    for scan, name in zip(bar, names, strict=True):
        volumes.append(open_volume(scan.path, selection, undersampled))
        chosen.append(selected(volumes[-1], selection, name))
        doubts += [f"{scan.path}: {doubt}" for doubt in volumes[-1].doubts]
    warn_of(doubts)
    if not undersampled:
        _warn_of_zeros(volumes[0], chosen[0])
    patients = [volume.patient for volume in volumes]
    people, remarks = labels.subjects(found, patients, selection.subjects)
    for remark in remarks:
        print(f"{remark.level}: {remark.text}", file=sys.stderr)
    scans = map(Scan, volumes, names, people)
    return Source(
        tuple(
            (scan, index)
            for scan, indices in zip(scans, chosen, strict=True)
            for index in indices
        )
    )


def _warn_of_zeros(first: Volume, numbers: list[int]) -> None:
    """Warns if the first scan, taken for fully sampled, lacks columns.

    Reading a slice of every scan would take too long.
    """
    if doubt := doubt_of_zeros(first, numbers[len(numbers) // 2]):
        more = "Only the first scan was looked at; kst-doctor looks at all."
        warn_of([f"{first.path}: {doubt} {more}"])


def warn_of(doubts: list[str]) -> None:
    """Prints the first of the doubts about scans, and how many more there are."""
    for doubt in doubts[:1]:
        more = f" So do {len(doubts) - 1} more; see kst-doctor." if doubts[1:] else ""
        print(f"warning: {doubt}{more}", file=sys.stderr)


def split_subjects(
    subjects: Collection[str], fraction: float, seed: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Splits people at random into a fraction to train on and the others.

    The split depends only on the set of names and the seed. Both sides get someone.

    Raises:
      InputError: there are fewer than two subjects, or the fraction is not in (0, 1).
    """
    if not 0 < fraction < 1:
        raise InputError(f"split fraction {fraction}: give a number between 0 and 1.")
    order = shuffled(set(subjects), f"{seed}:split")
    if len(order) < 2:
        raise InputError(
            f"a split needs two subjects, but the data has {order or 'none'}. Add "
            "another person's scans, give a separate test set, or, if these are scans "
            "of several people, say who is who with data.subjects."
        )
    size = min(max(round(fraction * len(order)), 1), len(order) - 1)
    return tuple(sorted(order[:size])), tuple(sorted(order[size:]))


def require_disjoint(
    one: Source, other: Source, name: str = "test", first: str = "training"
) -> None:
    """Raises InputError if two named sources share a person or a file."""
    if shared := sorted(set(one.subjects) & set(other.subjects)):
        raise InputError(
            f"subject {shared[0]} is in the {first} and in the {name} data "
            f"({len(shared)} shared in all). Split by subject; if these are different "
            "people, say who is who with data.subjects."
        )
    # People may have other labels among other files (`labels.subjects`).
    if files := sorted(one.files & other.files):
        raise InputError(
            f"{files[0]} is in the {first} and in the {name} data ({len(files)} such "
            "files). Split by subject."
        )
