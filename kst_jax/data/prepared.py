"""Prepared folders: slices, decoded once, in ArrayRecord shards.

    FOLDER/manifest.json             what was prepared, how, and where it lies
    FOLDER/00000-of-00012.array_record

`kst-prepare` writes them. One record is one slice; reading any of them at
random takes one seek. A run gets from a prepared folder what it would get from the
scans, or an error that says what the folder does not hold.
"""

import bisect
import dataclasses
from pathlib import Path
from typing import Any

import msgpack
import numpy as np
from tqdm import tqdm

from kst_jax.config import Selection
from kst_jax.data.volumes import Volume, reading, selected
from kst_jax.errors import InputError
from kst_jax.programs import files

FORMAT = 1
MANIFEST = "manifest.json"
UNFINISHED = "unfinished.json"
SUFFIX = ".array_record"


def encode(image: np.ndarray, **about: str | int | bool) -> bytes:
    """The record of a slice: msgpack of `about`, scale, shape and complex64 image.

    The image is divided by a power of two just above its largest value, `scale`:
    multiplying gives the very values back.
    """
    image = np.ascontiguousarray(image, "<c8")
    channels = image.view("<f4")
    exponent = int(np.frexp(np.abs(channels).max())[1])
    scale = 2.0 ** min(max(exponent, -126), 127)
    channels = channels / np.float32(scale)
    return msgpack.packb(
        {**about, "scale": scale, "shape": image.shape, "image": channels.tobytes()}
    )


def decode(record: bytes) -> dict[str, Any]:
    """Inverse of `encode`: `about`, scale, and the image (H, W) in its own units."""
    found = msgpack.unpackb(record)
    channels = np.frombuffer(found["image"], "<f4") * np.float32(found["scale"])
    image = channels.astype(np.float32, copy=False).view(np.complex64)
    rows, columns = found.pop("shape")
    found["image"] = image.reshape(rows, columns)
    if not np.isfinite(image).all():
        raise ValueError("values that are not finite")
    return found


@dataclasses.dataclass(frozen=True)
class Shard:
    """One file of records, opened when the first one is read; can be pickled.

    Attributes:
      path: the file.
      count: number of its records.
    """

    path: Path
    count: int
    _records: Any = dataclasses.field(init=False, repr=False, compare=False)

    def __post_init__(self):
        """Prepares for reading; nothing is opened yet."""
        # Only here: where the package cannot be had, scans can be read all the same.
        from array_record.python.array_record_data_source import ArrayRecordDataSource

        records = ArrayRecordDataSource([f"{self.path}[0:{self.count}]"])
        object.__setattr__(self, "_records", records)

    def read(self, place: int) -> dict[str, Any]:
        """One record, decoded; InputError where it is damaged."""
        try:
            return decode(self._records[place])
        except Exception as error:  # the record's hash does not match, or worse
            cause = " ".join(str(error).split())
            raise InputError(
                f"{self.path}: record {place} is damaged ({cause}). "
                f"`kst-prepare --verify {self.path.parent}` checks every file; "
                "copy what is damaged again, or prepare the scans again."
            ) from error


@dataclasses.dataclass(frozen=True)
class PreparedVolume:
    """One scan in a prepared folder.

    Attributes:
      path: the folder joined with the name of the scan's file.
      subject: whose scan it is.
      measured: whether the k-space is known to be measured.
      depth: number of slices of the scan, empty ones too.
      slices: numbers of those that hold something.
      kept: numbers of those that were prepared.
      shard: where they are, one after another.
      first: place of the first one in the shard.
    """

    path: Path
    subject: str
    measured: bool
    depth: int
    slices: tuple[int, ...]
    kept: tuple[int, ...]
    shard: Shard
    first: int

    def read(self, index: int) -> np.ndarray:
        """Complex64 image (H, W) of one slice, in the scan's units."""
        place = self.first + bisect.bisect_left(self.kept, index)
        record = self.shard.read(place)
        if (record["file"], record["index"]) != (self.path.name, index):
            raise InputError(
                f"{self.shard.path}: record {place} is slice {record['index']} of "
                f"{record['file']}, but by {MANIFEST} it is slice {index} of "
                f"{self.path.name}. The file belongs to another folder."
            )
        return record["image"]


@dataclasses.dataclass(frozen=True)
class Prepared:
    """A prepared folder: its path and its manifest."""

    path: Path
    manifest: dict[str, Any]

    def __fspath__(self) -> str:
        return str(self.path)

    @property
    def scans(self) -> list[Path]:
        """The folder joined with the name of each scan's file."""
        return [self.path / volume["file"] for _, volume in self._volumes()]

    def entries(self, selection: Selection) -> list[tuple[Volume, int]]:
        """The volumes and the numbers of those slices that the selection takes.

        Raises:
          InputError: the selection would take others from the scans themselves than
            the folder holds.
        """
        with reading(self.path / MANIFEST):
            return [
                (volume, index)
                for volume in self._opened(selection)
                for index in self._chosen(volume, selection)
            ]

    def _volumes(self) -> list[tuple[dict, dict]]:
        return [(s, v) for s in self.manifest["shards"] for v in s["volumes"]]

    def _opened(self, selection: Selection) -> list[PreparedVolume]:
        volumes = []
        for facts in self.manifest["shards"]:
            shard = Shard(self.path / facts["file"], facts["records"])
            first = 0
            for volume in facts["volumes"]:
                if volume["plane"]:
                    self._require_same_cut(selection)
                volumes.append(
                    PreparedVolume(
                        path=self.path / volume["file"],
                        subject=volume["subject"],
                        measured=volume["measured"],
                        depth=volume["depth"],
                        slices=tuple(volume["slices"]),
                        kept=tuple(volume["kept"]),
                        shard=shard,
                        first=first,
                    )
                )
                first += len(volume["kept"])
        return volumes

    def _require_same_cut(self, selection: Selection) -> None:
        for name in ("plane", "min_foreground"):
            there, here = self.manifest["selection"][name], getattr(selection, name)
            if there != here:
                raise InputError(
                    f"{self.path}: was prepared with {name} {there}, not {here}. Set "
                    f"data.{name}={there}, or prepare the scans once more."
                )

    def _chosen(self, volume: PreparedVolume, selection: Selection) -> list[int]:
        chosen = selected(volume, selection)
        if missing := sorted(set(chosen) - set(volume.kept)):
            options = ("slices", "drop_first", "fraction", "seed")
            made = ", ".join(f"{x} {self.manifest['selection'][x]}" for x in options)
            raise InputError(
                f"{self.path}: does not hold slice {missing[0]} of "
                f"{volume.path.name}, which the settings ask for: it was prepared with "
                f"{made}. Give the same under data (the seed of data.test is "
                "eval.seed), or prepare all slices."
            )
        return chosen


def is_folder(path: Path) -> bool:
    """Tell whether a path is a prepared folder, or one whose preparation began."""
    if (path / UNFINISHED).is_file():
        return True
    return (path / MANIFEST).is_file() and any(path.glob(f"*{SUFFIX}"))


def open_folder(path: Path) -> Prepared:
    """Read a folder's manifest; look at its files' sizes, not at what they hold.

    Raises:
      InputError: preparation has not finished, a file is missing or truncated, or the
        manifest is damaged or names no scan.
    """
    if not (path / MANIFEST).is_file():
        raise InputError(
            f"{path}: its preparation has not finished. Run the same command of "
            "kst-prepare again: it carries on where it was."
        )
    with reading(path / MANIFEST):
        manifest = files.read_json(path / MANIFEST)
        if manifest["format"] != FORMAT:
            raise InputError(
                f"{path}: has format {manifest['format']}, but this version reads "
                f"{FORMAT}. Prepare the scans once more."
            )
        for shard in manifest["shards"]:
            _require_name(shard["file"])
            for volume in shard["volumes"]:
                _require_text(volume["subject"])
                _require_name(volume["file"])
            file = path / shard["file"]
            size = file.stat().st_size if file.is_file() else None
            if size != shard["bytes"]:
                found = "is missing" if size is None else f"has {size} bytes"
                raise InputError(
                    f"{file}: {found}, but {MANIFEST} says {shard['bytes']} bytes. "
                    "Copy the folder again, or prepare the scans again."
                )
        if not any(shard["volumes"] for shard in manifest["shards"]):
            raise InputError(
                f"{path / MANIFEST}: names no scan. Copy the folder again, or prepare "
                "the scans again."
            )
    return Prepared(path, manifest)


def _require_text(value: object) -> str:
    if not isinstance(value, str):
        raise TypeError(f"{value!r} where there should be text")
    return value


def _require_name(value: object) -> None:
    """A file in the folder itself; a manifest from elsewhere leads nowhere else."""
    if Path(_require_text(value)).name != value:
        raise ValueError(f"{value!r} where there should be a file's name")


def verify(folder: str | Path) -> Prepared:
    """Reads every shard and compares its checksum with the manifest's.

    Raises:
      InputError: not a finished prepared folder, or files that differ; all are named.
    """
    folder = Path(folder).expanduser()
    if not is_folder(folder):
        raise InputError(f"{folder}: not a folder that kst-prepare made.")
    found = open_folder(folder)
    damaged = [
        shard["file"]
        for shard in tqdm(found.manifest["shards"], "Verifying", unit="shard")
        if files.sha256_of(folder / shard["file"]) != shard["sha256"]
    ]
    if damaged:
        raise InputError(
            f"{folder}: {', '.join(damaged)} {'differ' if damaged[1:] else 'differs'} "
            "from what was written. Copy the folder again, or prepare the scans again."
        )
    return found
