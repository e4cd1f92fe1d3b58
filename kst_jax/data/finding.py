"""Finding the files of scans: folders, files, patterns and the bundled people."""

import fnmatch
import glob
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from kst_jax.data import contents
from kst_jax.data.labels import Found
from kst_jax.data.readers.nifti import beside
from kst_jax.data.volumes import READERS, suffix_of
from kst_jax.errors import InputError

DEMO_FOLDER = Path(__file__).parent / "demo"
# Two people: one to train on, the other to test on. Then scans to reconstruct.
DEMO = {
    "demo:train": DEMO_FOLDER / "sub-0017_T1w.nii.gz",
    "demo:test": DEMO_FOLDER / "sub-0042_T1w.nii.gz",
    "demo:undersampled": DEMO_FOLDER / "sub-0042_uniform1d_5x.h5",
    "demo:coils": DEMO_FOLDER / "brain_vfa_8coils_4x.h5",
}


def find(paths: str) -> list[Found]:
    """Finds the files of the scans that `open_source` opens.

    A file that several of the paths contain is found once.

    Raises:
      InputError: a path contains no scan.
    """
    found: dict[str, Found] = {}
    for part in parts_of(paths):
        for scan in find_part(part):
            found.setdefault(own_path(scan.path), scan)
    return list(found.values())


def own_path(path: Path) -> str:
    """Returns a path that is the same through every link to the file's folder."""
    return os.path.join(os.path.realpath(path.parent), path.name)


def parts_of(paths: str) -> list[str]:
    """Splits a list of paths at its commas; raises InputError if it is empty."""
    parts = [part.strip() for part in paths.split(",") if part.strip()]
    if not parts:
        raise InputError("no path to the data. Name a folder or a file of scans.")
    return parts


def find_part(part: str) -> list[Found]:
    """Finds the scans of one of the paths in a list.

    Raises:
      InputError: no scan is found.
    """
    files = [_first_of_pair(file) for file in everything(part)]
    # Opening refuses what is not a file.
    scans = sorted({f for f in files if suffix_of(f) and not f.is_dir()})
    if not scans:
        told = contents.passed_over(files[0]) if files == [_path(part)] else None
        if told and files[0].is_file():
            raise InputError(f"{part}: is no scan that is read: {told[0]}. {told[1]}")
        raise InputError(
            f"{part}: no scan found. Looked for {', '.join(READERS)}"
            f"{' here and in all subfolders' if _path(part).is_dir() else ''}."
        )
    root = _root(part)
    return [Found(scan, root) for scan in scans]


def _first_of_pair(file: Path) -> Path:
    """Returns the file that stands for a pair: Analyze's .hdr and BART's .cfl."""
    suffix = file.suffix.lower()
    if suffix == ".img":
        return beside(file, ".hdr")
    values = beside(file, ".cfl") if suffix == ".hdr" else file
    return values if values.exists() else file


def everything(part: str) -> list[Path]:
    """Lists all that is in a folder and its subfolders, or matches a pattern.

    The list has files and folders, scans and others, but nothing hidden.

    Raises:
      InputError: nothing has this name, or a folder cannot be read.
    """
    path = _path(part)
    if path.is_dir():
        return list(_walk(path))
    if path.exists():
        return [path]
    found = _matches(path)
    if not found:
        raise InputError(
            f"{part}: no such file or folder. Check the spelling; the bundled scans "
            f"are {' and '.join(DEMO)}. Commas separate paths: if a name contains a "
            "comma, write ? for it and name the scans, as in '/data/a?b/**'."
        )
    return found


def _path(part: str) -> Path:
    return DEMO.get(part) or Path(part).expanduser()


def _root(part: str) -> Path:
    """Returns the folder below which the path of a scan may tell whose it is."""
    path = _path(part)
    if path.is_dir():
        return path
    return path.parent if path.exists() else _split_pattern(path)[0]


def _walk(top: Path) -> Iterator[Path]:
    """Yields what is below a folder, following links to folders.

    Every folder is searched once, under its own name if it is inside `top`. So links
    may form loops, but they lead to no scan twice. Links to folders that contain
    `top` are not followed.
    """
    seen: set[str] = set()
    own = Path(os.path.realpath(top))
    starts = [top]
    for start in starts:
        for here, folders, names in os.walk(start, onerror=_refuse):
            real = os.path.realpath(here)
            if real in seen or Path(real) in own.parents:
                folders.clear()
                continue
            seen.add(real)
            folders[:] = sorted(name for name in folders if not name.startswith("."))
            shown = [*folders, *(name for name in names if not name.startswith("."))]
            yield from (Path(here, name) for name in shown)
            links = (Path(here, name) for name in folders)
            starts += [link for link in links if link.is_symlink()]


def _refuse(error: OSError) -> None:
    raise InputError(
        f"{error.filename}: cannot be searched ({error.strerror}). Make the folder "
        "readable, or give paths that leave it out."
    )


def _matches(pattern: Path) -> list[Path]:
    folder, rest = _split_pattern(pattern)
    if not rest or not folder.is_dir():
        return []
    if "**" not in rest:
        found = folder.glob("/".join(rest))
        return [path for path in found if not _hidden(path.relative_to(folder))]
    if rest[-1] == "**":
        rest = (*rest, "*")
    return [p for p in _walk(folder) if _fits(p.relative_to(folder).parts, rest)]


def _split_pattern(pattern: Path) -> tuple[Path, tuple[str, ...]]:
    """Splits a pattern into the folder before its first wildcard, and the rest."""
    parts = pattern.parts
    first = next((n for n, p in enumerate(parts) if glob.has_magic(p)), len(parts))
    return Path(*parts[:first]), parts[first:]


def _fits(parts: Sequence[str], pattern: Sequence[str]) -> bool:
    """Returns whether a path matches a pattern, in which `**` is any folders."""
    if not pattern:
        return not parts
    if pattern[0] == "**":
        return any(_fits(parts[n:], pattern[1:]) for n in range(len(parts) + 1))
    fits = bool(parts) and fnmatch.fnmatchcase(parts[0], pattern[0])
    return fits and _fits(parts[1:], pattern[1:])


def _hidden(path: Path) -> bool:
    """Returns whether a part is hidden, as macOS's `._scan.h5` or datalad's `.git`."""
    return any(part.startswith(".") for part in path.parts)
