"""Ordinary files, written whole or not at all, their folders and checksums."""

import contextlib
import hashlib
import json
import operator
import os
import re
import secrets
import tempfile
from collections.abc import Callable, Collection, Iterable, Iterator
from pathlib import Path
from typing import Any

import filelock

from kst_jax.errors import InputError

_MAX_JSON_BYTES = 2**28
_SAMPLES, _SAMPLE_BYTES = 16, 4096  # of a file, to tell it from others


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """Yields a temporary path, which becomes `path` at the end unless writing fails.

    A killed process leaves a hidden file whose name ends in `.partial`.
    """
    # By chance: on a shared disk, processes of several hosts may have one number.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.partial")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def local_folder(path: str | os.PathLike) -> Path:
    """Returns the absolute path of a folder, which need not exist.

    Raises:
      InputError: a URL, such as gs://bucket/run; a Path has only one slash left.
    """
    if scheme := re.match(r"[A-Za-z][\w+.-]+:/", os.fspath(path)):
        raise InputError(
            f"{os.fspath(path)}: runs and results need a folder of this machine; "
            f"{scheme[0]}/ is not supported. Give a local or mounted folder, and copy "
            "it to the storage afterwards"
        )
    # Unlike Path.expanduser, this keeps ~name where there is no such user.
    return Path(os.path.expanduser(path)).absolute()


@contextlib.contextmanager
def plainly_named(folder: Path) -> Iterator[Path]:
    """Yields a path of a folder for libraries that misread some names.

    Orbax takes *, ? and [ in the names of parent folders for patterns, and TensorStore
    takes neither backslashes nor names that are not UTF-8. Any but a plain path goes by
    a temporary link.

    Raises:
      InputError: the folder for temporary files has such a name too.
    """
    if _is_plain(folder):
        yield folder
        return
    with tempfile.TemporaryDirectory(prefix="kst-") as name:
        link = Path(name).absolute() / "folder"
        if not _is_plain(link):
            raise InputError(
                f"{name}: checkpoints cannot be reached through this folder; set "
                "TMPDIR to one whose name has letters and digits alone"
            )
        link.symlink_to(folder, target_is_directory=True)
        yield link


def _is_plain(path: Path) -> bool:
    return bool(re.fullmatch(r"[\w ./+=,@:%~-]*", str(path)))


def encoded(name: str) -> bytes:
    """Encodes a file name, even one that is not UTF-8, the same way on every system."""
    return name.encode("utf-8", "surrogateescape")


def require_ordinary(path: str | os.PathLike) -> None:
    """Raises InputError for a folder, pipe or device: reading one may never end.

    A missing file passes; opening it will fail.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or a device"
        raise InputError(f"{path}: is {what}, not a file. Give the file itself.")


def read_json(path: Path) -> Any:
    """Reads a JSON file.

    This takes up to about thirty times the file's size in memory, at most 8 GiB.

    Raises:
      InputError: the file is damaged, or not an ordinary file.
      FileNotFoundError: the file does not exist.
    """
    require_ordinary(path)
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"has more than {_MAX_JSON_BYTES} bytes")
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # RecursionError: nested too deeply
        raise InputError(
            f"{path}: cannot be read ({error}). Copy or write it again."
        ) from error


def require_same_json(
    path: Path,
    name: str,
    value: Any,
    otherwise: str,
    same: Callable[[Any, Any], bool] = operator.eq,
) -> None:
    """Refuses an existing JSON file that was made from something else.

    Args:
      path: the file; it need not exist.
      name: key whose value identifies what the file was made from.
      value: value expected there, once written as JSON and read.
      otherwise: message if the value differs or the file is damaged.
      same: whether the value there and the expected one are of the same things.

    Raises:
      InputError: `otherwise`.
    """
    if not path.exists():
        return
    try:
        agrees = same(read_json(path)[name], json.loads(json.dumps(value)))
    except (InputError, KeyError, TypeError, AttributeError):
        agrees = False
    if not agrees:
        raise InputError(otherwise)


@contextlib.contextmanager
def together(folder: Path, replaced: Collection[str] = ()) -> Iterator[Path]:
    """Yields a temporary folder, whose files move to `folder` unless writing fails.

    Files at the top level show that the others are complete, so old ones are removed
    first and new ones are moved last. A killed process leaves a hidden `.partial-*`.

    Args:
      folder: destination; files with other names stay there.
      replaced: old files to remove, whether there are new ones or not.
    """
    make_folder(folder)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".partial-") as name:
        temporary = Path(name)
        yield temporary
        files = [path for path in temporary.rglob("*") if path.is_file()]
        tops = [file.name for file in files if file.parent == temporary]
        for name in (*tops, *replaced):
            (folder / name).unlink(missing_ok=True)
        for file in sorted(files, key=lambda file: -len(file.parts)):
            target = folder / file.relative_to(temporary)
            target.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, target)


@contextlib.contextmanager
def alone_in(folder: Path) -> Iterator[None]:
    """Locks a folder against other processes that lock it too.

    The system releases the lock however the process ends; a plain lock file would
    outlive a crash. On file systems without locks it has no effect.

    Raises:
      InputError: another process holds the lock.
    """
    # Never by a file's presence alone, which is what it falls back to otherwise.
    lock = filelock.FileLock(
        folder / ".lock", blocking=False, thread_local=False, fallback_to_soft=False
    )
    with contextlib.ExitStack() as held:
        try:
            held.enter_context(lock)
        except filelock.Timeout:
            raise InputError(
                f"{folder}: another process is writing here; stop it or wait for it, "
                "or choose another folder"
            ) from None
        except OSError:
            pass
        yield


def make_folder(path: Path) -> None:
    """Makes a folder to write into, and its parents, if they do not exist.

    Raises:
      InputError: a file has its name, or the folder is not writable.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=path):
            pass
    except (FileExistsError, NotADirectoryError) as error:
        raise InputError(
            f"{path}: cannot be a folder, since a file is in its way; choose another"
        ) from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be written to ({error.strerror}); choose another folder, "
            "or check its permissions and the disk"
        ) from error


def sha256_of(path: Path) -> str:
    """Returns the SHA-256 of a file's contents, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def fingerprint(paths: Iterable[Path]) -> dict[str, int | str]:
    """Tells files from others of their names quickly, however large they are.

    Scans of one protocol often have the same size, so that alone does not do.

    Returns:
      `bytes`, their size together, and `sampled_sha256`, in hexadecimal, of parts that
      lie evenly between the start and the end of each file.
    """
    size, digest = 0, hashlib.sha256()
    for path in paths:
        with path.open("rb") as file:
            length = file.seek(0, os.SEEK_END)
            last = max(length - _SAMPLE_BYTES, 0)
            for number in range(_SAMPLES):
                file.seek(last * number // (_SAMPLES - 1))
                digest.update(file.read(_SAMPLE_BYTES))
        size += length
    return {"bytes": size, "sampled_sha256": digest.hexdigest()}
