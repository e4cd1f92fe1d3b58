"""Files: ordinary ones, written whole or not at all, their folders and checksums."""

import contextlib
import hashlib
import json
import os
import sys
import tempfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

from kst_jax.errors import InputError

_MAX_JSON_BYTES = 2**28


@contextlib.contextmanager
def whole(path: Path) -> Iterator[Path]:
    """A temporary path to write, which becomes `path` at the end, if nothing fails.

    What a killed process leaves behind is hidden and ends in `.partial`.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield temporary
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def encoded(name: str) -> bytes:
    """A file's name as bytes, of one that is not UTF-8 too, alike on every system."""
    return name.encode("utf-8", "surrogateescape")


def require_ordinary(path: str | os.PathLike) -> None:
    """Raises InputError for a folder, pipe or device, which might be read for ever.

    What does not exist is left to those who open it.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        what = "a folder" if path.is_dir() else "a pipe or a device"
        raise InputError(f"{path}: is {what}, not a file. Give the file itself.")


def read_json(path: Path) -> Any:
    """What a JSON file holds.

    Takes up to some thirty times the file's size in memory, or 8 GiB.

    Raises:
      InputError: damaged, or no ordinary file.
      FileNotFoundError: it does not exist.
    """
    require_ordinary(path)
    try:
        if path.stat().st_size > _MAX_JSON_BYTES:
            raise ValueError(f"has more than {_MAX_JSON_BYTES} bytes")
        return json.loads(path.read_text())
    except (ValueError, RecursionError) as error:  # the latter: nested without end
        raise InputError(
            f"{path}: cannot be read ({error}). Copy or write it again."
        ) from error


def require_same_json(path: Path, name: str, value: Any, otherwise: str) -> None:
    """Refuses to go on where a JSON file is there that was made from other things.

    Args:
      path: the file; it need not exist.
      name: the key under which it tells what it was made from.
      value: what it should have there, once written as JSON and read.
      otherwise: what to tell where it has another value, or is damaged.

    Raises:
      InputError: `otherwise`.
    """
    if not path.exists():
        return
    try:
        same = read_json(path)[name] == json.loads(json.dumps(value))
    except (InputError, KeyError, TypeError):
        same = False
    if not same:
        raise InputError(otherwise)


@contextlib.contextmanager
def together(folder: Path, replaced: Collection[str] = ()) -> Iterator[Path]:
    """A temporary folder, whose files go to `folder` at the end, if nothing fails.

    Files at the top tell that the others are whole: earlier ones go first, new ones
    come last. What a killed process leaves behind is hidden in `.partial-*`.

    Args:
      folder: where they go; what has another name stays there.
      replaced: files of an earlier time, which go whether there are new ones or not.
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
    """Keeps other processes that ask for the same out of a folder.

    The system frees it when the process ends, however that ends, where a lock file of a
    killed machine would stay. A file system that has no locks keeps nobody out, nor
    does Windows.

    Raises:
      InputError: another one is there.
    """
    with (folder / ".lock").open("a") as file:
        if sys.platform != "win32":
            import fcntl

            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise InputError(
                    f"{folder}: another process is training here; stop it or wait for "
                    "it, or choose a new --workdir"
                ) from None
            except OSError:
                pass
        yield


def make_folder(path: Path) -> None:
    """Makes a folder to write into, with those above it; one may be there already.

    Raises:
      InputError: a file is in its way, or nothing can be written there.
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
            "or see to its permissions and to the disk"
        ) from error


def sha256_of(path: Path) -> str:
    """SHA-256 of what a file holds, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
