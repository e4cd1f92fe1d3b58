"""Whose scan a file is, and what the scan is called in results.

The first of these that applies says who a scan belongs to:

1. the user's pattern (`data.subjects`);
2. the attribute `patient_id` of a fastMRI file;
3. an OASIS or BIDS label in the file's name, or else in the names of its folders. Above
   what the user named, a BIDS label counts only if it has a digit and is the folder's
   whole name, as in /bids/sub-01, but not in /data/sub-cortical_study;
4. the folder, if files in several folders have the same name, as in HCP;
5. the file's name without its suffix.

Rules 1 to 3 look at one file. The others depend on the files opened with it.
"""

import collections
import dataclasses
import hashlib
import itertools
import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from kst_jax.data.volumes import name_of
from kst_jax.errors import InputError
from kst_jax.programs import files

_OASIS = re.compile(r"(?<![A-Za-z0-9])(?:OAS[12]_\d{4}|OAS[34]\d{4})(?![0-9])")
_BIDS = re.compile(r"(?<![A-Za-z0-9])sub-[A-Za-z0-9]+")
_DIGIT = re.compile(r"\d")
# A stem such as IXI002-Guys-0828-T1: what several scans of a person share, and a rest.
_SEPARATORS = "-_. "
_SHARED_STEM = re.compile(f"(.+)[{_SEPARATORS}]([^{_SEPARATORS}]+)")
# Shorter than any file system's limit, with room for the suffix of unfinished files.
_MAX_NAME_BYTES = 120
_OPTION = "data.subjects"


@dataclasses.dataclass(frozen=True)
class Found:
    """A scan's file and where it was found.

    Attributes:
      path: the file.
      root: the folder that the user named, or the one above a named file or pattern.
    """

    path: Path
    root: Path

    @property
    def below(self) -> Path:
        """The path below what the user named."""
        return self.path.relative_to(self.root)


@dataclasses.dataclass(frozen=True)
class Remark:
    """Something that the user should know about the labels.

    Attributes:
      level: "warning", or "note" if nothing is probably wrong.
      text: the remark.
    """

    level: str
    text: str


def file_names(paths: Sequence[Path]) -> list[str]:
    """Returns each file's name, preceded by folders where files have the same stem.

    900001/T1w/T1w_acpc.nii.gz and 900002/T1w/T1w_acpc.nii.gz become
    900001_T1w_acpc.nii.gz and 900002_T1w_acpc.nii.gz. The names do not depend on where
    the data is.

    Raises:
      InputError: a folder holds two files that differ in their suffix alone.
    """
    folders = {
        path: apart
        for group in _by_stem(paths)
        for path, apart in zip(group, _differing_folders(group), strict=True)
    }
    names = {path: "_".join((*folders[path], path.name)) for path in paths}
    stems = collections.Counter(name_of(Path(name)) for name in names.values())
    for path, name in names.items():
        if folders[path] and stems[name_of(Path(name))] > 1:  # a/b_c.h5, a_b/c.h5
            names[path] = f"{_digest('/'.join((*folders[path], name)))}_{name}"
    return [names[path] for path in paths]


def result_name(file: str) -> str:
    """Returns the name of a scan's results: the file's stem, shortened if it is long.

    Args:
      file: the result of `file_names`.
    """
    stem = name_of(Path(file))
    encoded = files.encoded(stem)
    if len(encoded) <= _MAX_NAME_BYTES:
        return stem
    digest = _digest(stem)
    start = encoded[: _MAX_NAME_BYTES - len(digest) - 1].decode(errors="ignore")
    return f"{start}-{digest}"


def subjects(
    found: Sequence[Found], patients: Sequence[str], pattern: str = ""
) -> tuple[list[str], list[Remark]]:
    """Returns whose scan each file is, and remarks on doubtful labels.

    Args:
      found: the files that are used together.
      patients: each file's own label, or an empty string.
      pattern: regular expression whose only group is the label. It is searched in the
        path below what the user named, and then in the whole path.

    Raises:
      InputError: the pattern does not match a file; or files in several folders have
        the same names, and nothing tells whether a folder or a name is a person.
    """
    if pattern:
        return [_by_pattern(scan.path, scan.below, pattern) for scan in found], []
    labels = [
        patient or _label(scan) for scan, patient in zip(found, patients, strict=True)
    ]
    remarks = list(_shared(found, labels))
    rest = [scan for scan, label in zip(found, labels, strict=True) if not label]
    folders = _by_folder([scan.path for scan in rest])
    if folders:
        remarks.append(_folders_remark(folders))
    remarks += _alike(scan for scan in rest if scan.path not in folders)
    return [
        label or folders.get(scan.path) or name_of(scan.path)
        for scan, label in zip(found, labels, strict=True)
    ], remarks


def _by_pattern(path: Path, below: Path, pattern: str) -> str:
    for text in (below.as_posix(), Path(os.path.abspath(path)).as_posix()):
        match = re.search(pattern, text)
        if match and match[1]:
            return match[1]
    raise InputError(
        f"{path}: {_OPTION}={pattern!r} does not match its path, so nothing tells "
        "whose scan it is. Extend the pattern, or leave out the file."
    )


def _label(scan: Found) -> str:
    """Returns the OASIS or BIDS label of a file; empty if it has none."""
    below = scan.below
    above = Path(os.path.abspath(scan.root)).parts[::-1]
    for part in (below.name, *below.parent.parts[::-1], *above):
        if match := _OASIS.search(part):
            return match[0]
    if match := _BIDS.search(below.name):
        return match[0]
    for folder in below.parent.parts[::-1]:
        match = _BIDS.search(folder)
        # sub-01, sub-01_visit2 and sub-A, but not a title such as sub-cortical_study
        if match and (match[0] == folder or _DIGIT.search(match[0])):
            return match[0]
    names = (name for name in above if _BIDS.fullmatch(name) and _DIGIT.search(name))
    return next(names, "")


def _by_folder(paths: Sequence[Path]) -> dict[Path, str]:
    """Returns the folder of each file that it names: the first one that differs."""
    found: dict[Path, str] = {}
    for top in _tops(paths):
        inside = {
            path: folder.relative_to(top).parts[0]
            for path in paths
            if top in (folder := _folder_of(path)).parents
        }
        repeated = [g for g in _by_stem(paths) if len(g) > 1]
        if any(_folder_of(path) == top for group in repeated for path in group):
            continue  # a.npy and more/a.h5: not one folder for each person
        people, names = set(inside.values()), {name_of(path) for path in inside}
        if 1 < len(names) >= len(people):
            first, second, *_ = next(g for g in repeated if g[0] in inside)
            raise InputError(
                f"{first} and {second}: have the same name, and nothing tells whether "
                f"a folder or a name is a person: {top} has {len(people)} folders of "
                f"scans with {len(names)} names. Say it with {_OPTION}, such as "
                "'([^/]+)/' if folders are people."
            )
        found |= inside
    return found


def _tops(paths: Sequence[Path]) -> list[Path]:
    """Returns the folders in which files of the same name lie in several folders."""
    tops = {
        Path(os.path.commonpath([_folder_of(path) for path in group]))
        for group in _by_stem(paths)
        if len(group) > 1
    }
    return sorted(top for top in tops if not tops & set(top.parents))


def _folders_remark(folders: dict[Path, str]) -> Remark:
    people = sorted(set(folders.values()))
    return Remark(
        "note",
        "files in several folders have the same name, so each folder counts as a "
        f"person: {_listed(people)}. If that is wrong, say who is who with {_OPTION}.",
    )


def _shared(found: Sequence[Found], labels: Sequence[str]) -> Iterator[Remark]:
    """Remarks on labels that several of the named folders have."""
    roots: dict[str, dict[str, None]] = {}
    for scan, label in zip(found, labels, strict=True):
        if label:
            roots.setdefault(label, {})[os.path.abspath(scan.root)] = None
    several = [label for label, where in roots.items() if len(where) > 1]
    if several:
        one, other, *_ = map(Path, roots[several[0]])
        yield Remark(
            "note",
            f"{several[0]} is in {one} and in {other} and counts as one person "
            f"(people in several of the named folders: {len(several)}). If they are "
            f"different people, say so with {_OPTION}, such as "
            f"'((?:{one.name}|{other.name})/sub-[^/_]+)'.",
        )


def _alike(found: Iterable[Found]) -> Iterator[Remark]:
    """Remarks on stems that may be scans of one person, such as p1_T1 and p1_T2.

    Numbers of one series, such as scan_1 and scan_2, are no reason.
    """
    stems = {name_of(scan.path): scan.below for scan in found}
    groups: dict[str, list[str]] = {}
    for stem in sorted(stems):
        if match := _SHARED_STEM.fullmatch(stem):
            groups.setdefault(match[1], []).append(stem)
    groups = {shared: several for shared, several in groups.items() if several[1:]}
    alike = [
        several
        for shared, several in groups.items()
        if not _is_series([stem[len(shared) + 1 :] for stem in several], len(groups))
    ]
    if alike:
        one, other, *_ = alike[0]
        between = next(c for c in reversed(one) if c in _SEPARATORS)
        example = f"([^/]+)[{between}][^/{between}]+$"
        if len(stems[one].parts) > 1:
            example = "([^/]+)/"
        yield Remark(
            "warning",
            f"{one} and {other} count as two people{_and_more(len(alike) - 1)}. If "
            "they are scans of one person, say who is who with "
            f"{_OPTION}, such as '{example}'.",
        )


def _and_more(count: int) -> str:
    return f", and so do {count} more such groups of names" if count else ""


def _is_series(ends: Sequence[str], groups: int) -> bool:
    """Tells scan_1, scan_2, ... from p1_1, p1_2, p2_1, p2_2."""
    numbers = all(end.isdigit() for end in ends)
    return numbers and (groups == 1 or max(map(len, ends)) > 2)


def _by_stem(paths: Iterable[Path]) -> list[list[Path]]:
    groups: dict[str, list[Path]] = {}
    for path in paths:
        groups.setdefault(name_of(path), []).append(path)
    return list(groups.values())


def _differing_folders(paths: Sequence[Path]) -> list[tuple[str, ...]]:
    """Returns the part of each path's folders that differs from the others'.

    Raises:
      InputError: two files are in one folder.
    """
    folders = [_folder_of(path).parts for path in paths]
    seen: dict[tuple[str, ...], Path] = {}
    for path, parts in zip(paths, folders, strict=True):
        if (other := seen.setdefault(parts, path)) is not path:
            raise InputError(
                f"{path} and {other}: both would be written as {name_of(path)}. Rename "
                "one, or give a pattern that leaves one out."
            )
    first = _count_shared(folders)
    apart = [parts[first:] for parts in folders]
    last = _count_shared([parts[::-1] for parts in apart])
    return [parts[: len(parts) - last] for parts in apart]


def _count_shared(paths: Iterable[tuple[str, ...]]) -> int:
    """Counts the parts that all paths have in common at their start."""
    levels = zip(*paths, strict=False)
    return len(list(itertools.takewhile(lambda level: len(set(level)) == 1, levels)))


def _folder_of(path: Path) -> Path:
    return Path(os.path.abspath(path)).parent


def _digest(text: str) -> str:
    return hashlib.sha256(files.encoded(text)).hexdigest()[:8]


def _listed(people: Sequence[str]) -> str:
    return ", ".join(people[:3]) + (f" and {len(people) - 3} more" * (len(people) > 3))
