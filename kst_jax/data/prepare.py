"""Prepares scans: decodes them once, so that training reads single slices from shards.

    kst-prepare /data/oasis /data/oasis_prepared
    kst-prepare --verify /data/oasis_prepared

The first one writes shards and a manifest.json into /data/oasis_prepared, which then
goes where the scans went, --config.data.train=/data/oasis_prepared; an interrupted one
carries on with the same command. The second one checks every byte of the result.

Keep everything, the default, where there is room: a run can then choose slices as from
the scans themselves. What is left out here must be left out by the run's own settings
too. docs/data.md tells when preparing pays, and describes the files.
"""

import contextlib
import dataclasses
import functools
import json
import os
from collections.abc import Iterator
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kst_jax.config import Selection
from kst_jax.data import prepared, sources
from kst_jax.data.prepared import FORMAT, MANIFEST, SUFFIX, UNFINISHED
from kst_jax.data.volumes import (
    add_options,
    open_volume,
    reading,
    selected,
    selection_of,
)
from kst_jax.errors import InputError
from kst_jax.programs import files, processes
from kst_jax.programs.arguments import Parser

# A shard takes this many bytes of scans: enough work to be worth a file, little enough
# to do again. Large data get larger shards, since each one is a file held open.
_SHARD_BYTES = 2**24
_MAX_SHARDS = 512
# Light compression reads as fast as none and shrinks simulated k-space to a fraction.
_WRITER = "group_size:1,zstd:1"


def prepare(
    source: str, out: str | Path, selection: Selection | None = None, workers: int = 1
) -> prepared.Prepared:
    """Writes a prepared folder, or carries on with one that is not finished.

    Args:
      source: scans, as `sources.open_source` takes them.
      out: folder to write; new, empty, or of the same preparation.
      selection: slices to keep, by default all that are not empty.
      workers: processes that decode, each a shard at a time.

    Returns:
      The folder.

    Raises:
      InputError: scans that cannot be used, a folder that holds something else, or a
        file that cannot be written.
    """
    out, selection = Path(out).expanduser(), selection or Selection()
    scans = []
    for scan in sources.find(source):
        if isinstance(scan, prepared.Prepared):
            raise InputError(f"{scan.path}: is prepared already. Name scans.")
        scans.append(scan)
    plan = {
        "format": FORMAT,
        "source": source,
        "selection": _as_json(dataclasses.asdict(selection)),
        "shards": _plan(scans),
    }
    if (out / MANIFEST).exists():
        _require_same(out, plan, out / MANIFEST)
        _require_unchanged(out)
    else:
        plan = _begin(out, plan)
        _write_shards(out, plan, selection, workers)
        _write_json(out / MANIFEST, plan | _totals(out, plan))
    _tidy(out, plan)
    return prepared.open_folder(out)


def _plan(scans: list[Path]) -> list[dict]:
    """Which scans go into which shard, in order; sizes alone decide."""
    sizes = [_data(scan).stat().st_size for scan in scans]
    enough = max(_SHARD_BYTES, sum(sizes) // _MAX_SHARDS)
    shards: list[list[dict]] = [[]]
    size = 0
    for scan, more in zip(scans, sizes, strict=True):
        if size >= enough:
            shards, size = [*shards, []], 0
        shards[-1].append({"path": os.path.abspath(scan)})
        size += more
    return [
        {"file": f"{number:05}-of-{len(shards):05}{SUFFIX}", "volumes": volumes}
        for number, volumes in enumerate(shards)
    ]


def _begin(out: Path, plan: dict) -> dict:
    """The plan of the folder: `plan`, or the one that was begun here."""
    if (out / UNFINISHED).exists():
        return _require_same(out, plan, out / UNFINISHED)
    files.make_folder(out)
    if any(file.suffix != ".partial" for file in out.iterdir()):
        raise InputError(f"{out}: holds something else. Name a new folder.")
    _write_json(out / UNFINISHED, plan)
    return plan


def _require_same(out: Path, plan: dict, path: Path) -> dict:
    """What is written at `path`; InputError where it is not the same preparation."""
    with reading(path):
        before = files.read_json(path)
        differences = [
            f"{name} {before['selection'].get(name)} there, {value} here"
            for name, value in plan["selection"].items()
            if before["selection"].get(name) != value
        ]
        if _scans(before) != _scans(plan):
            differences.insert(0, f"scans of {before['source']} there")
        if before["format"] != FORMAT:
            differences.insert(0, f"format {before['format']} there, {FORMAT} here")
    if differences:
        raise InputError(
            f"{out}: holds another preparation: {'; '.join(differences)}. Name a new "
            "folder, or delete this one."
        )
    return before


def _require_unchanged(out: Path) -> None:
    for shard in prepared.open_folder(out).manifest["shards"]:
        if changed := _changed(shard):
            raise InputError(
                f"{out}: {changed} has changed since it was prepared. Name a new "
                "folder, or delete this one."
            )


def _write_shards(out: Path, plan: dict, selection: Selection, workers: int) -> None:
    for left in out.glob(".*.partial"):  # by a process that was killed
        left.unlink()
    todo = [shard for shard in plan["shards"] if not _is_whole(out, shard)]
    write = functools.partial(_write_shard, out, selection)
    total = len(_scans(plan))
    done = total - len(_scans({"shards": todo}))
    with (
        _map(min(workers, len(todo))) as map_,
        tqdm(desc="Preparing", unit="scan", total=total, initial=done) as bar,
    ):
        for written in map_(write, todo):
            bar.update(written)


@contextlib.contextmanager
def _map(workers: int) -> Iterator:
    """A `map` over processes, which a failure stops; the plain one for one worker."""
    if workers <= 1:
        yield map
        return
    try:
        with processes.pool(workers) as pool:
            yield pool.map
    except BrokenProcessPool as error:
        raise InputError(
            "a worker process ended without a word, usually for lack of memory. Run "
            "the same command with fewer --workers: it carries on where it was."
        ) from error


def _write_shard(out: Path, selection: Selection, shard: dict) -> int:
    """Writes one shard and, after it, what the manifest will say; counts its scans."""
    path = out / shard["file"]
    with files.whole(path) as partial:
        with _writing(partial) as writer:
            volumes = [
                _write_scan(writer, Path(volume["path"]), selection)
                for volume in shard["volumes"]
            ]
        facts = {
            "file": path.name,
            "records": sum(len(volume["kept"]) for volume in volumes),
            "bytes": partial.stat().st_size,
            "sha256": files.sha256_of(partial),
            "volumes": volumes,
        }
    _write_json(_facts(path), facts)
    return len(volumes)


@contextlib.contextmanager
def _writing(path: Path) -> Iterator:
    from array_record.python.array_record_module import ArrayRecordWriter

    try:
        writer = ArrayRecordWriter(str(path), _WRITER)
        yield writer
        writer.close()
    except RuntimeError as error:  # what the library raises for every failure
        cause = " ".join(str(error).split())
        raise InputError(
            f"{path.parent}: cannot be written ({cause}). Make room on the disk, or "
            "see to its permissions, and run the same command again: it carries on."
        ) from error


def _write_scan(writer: Any, path: Path, selection: Selection) -> dict:
    stamp = _stamp(path)
    volume = open_volume(path, selection)
    kept = selected(volume, selection)
    source = sources.Source(tuple((volume, index) for index in kept))
    for number in range(len(source)):
        writer.write(prepared.encode(**vars(source[number])))
    return {
        "path": str(path),
        **stamp,
        "file": path.name,
        "subject": volume.subject,
        "measured": volume.measured,
        "plane": getattr(volume, "plane", None),
        "depth": volume.depth,
        "slices": list(volume.slices),
        "kept": kept,
    }


def _totals(out: Path, plan: dict) -> dict:
    shards = [files.read_json(_facts(out / s["file"])) for s in plan["shards"]]
    volumes = [volume for shard in shards for volume in shard["volumes"]]
    return {
        "slices": sum(shard["records"] for shard in shards),
        "volumes": len(volumes),
        "subjects": len({volume["subject"] for volume in volumes}),
        "bytes": sum(shard["bytes"] for shard in shards),
        "shards": shards,
    }


def _tidy(out: Path, plan: dict) -> None:
    for shard in plan["shards"]:
        _facts(out / shard["file"]).unlink(missing_ok=True)
    (out / UNFINISHED).unlink(missing_ok=True)


def _is_whole(out: Path, shard: dict) -> bool:
    """Whether a shard was written, from scans that are still the same."""
    path = out / shard["file"]
    if not (path.exists() and _facts(path).exists()):
        return False
    facts = files.read_json(_facts(path))
    return path.stat().st_size == facts["bytes"] and not _changed(facts)


def _changed(shard: dict) -> str | None:
    """The first scan of a shard that is another than when it was read."""
    for volume in shard["volumes"]:
        if any(volume[k] != v for k, v in _stamp(Path(volume["path"])).items()):
            return volume["path"]
    return None


def _stamp(path: Path) -> dict:
    stat = _data(path).stat()
    return {"bytes": stat.st_size, "modified_ns": stat.st_mtime_ns}


def _data(scan: Path) -> Path:
    """Where most of a scan lies: of an Analyze pair, not in the header."""
    image = scan.with_suffix(".img")
    return image if scan.suffix.lower() == ".hdr" and image.exists() else scan


def _facts(shard: Path) -> Path:
    return shard.with_name(f"{shard.name}.json")


def _scans(plan: dict) -> list[str]:
    return [v["path"] for shard in plan["shards"] for v in shard["volumes"]]


def _as_json(value: Any) -> Any:
    return json.loads(json.dumps(value))


def _write_json(path: Path, value: dict) -> None:
    with files.whole(path) as partial:
        partial.write_text(json.dumps(value))


def _main() -> None:
    """Command line: prepares scans, or verifies a prepared folder."""
    parser = Parser("kst-prepare", __doc__)
    add = parser.add_argument
    add(
        "source",
        nargs="?",
        help="folder, file, pattern, or several with commas: fastMRI .h5, NIfTI, "
        "Analyze, the authors' .npy, or a bundled scan (demo:train)",
    )
    add("out", help="folder to write, or with --verify to check")
    add("--verify", action="store_true", help="check every byte of a prepared folder")
    add(
        "--workers",
        type=int,
        default=os.cpu_count(),
        help="processes that decode (as many as there are cores)",
    )
    add_options(parser)
    args = parser.parse_intermixed_args()
    if args.verify:
        if args.source:
            parser.error("--verify takes one folder")
        _report("every file is as it was written", prepared.verify(args.out))
        return
    if args.source is None:
        parser.error("give SOURCE and OUT")
    if args.workers < 1:
        raise InputError(f"--workers {args.workers}: give 1 or more.")
    folder = prepare(args.source, args.out, selection_of(args), args.workers)
    _report("prepared", folder)
    print(f"train on it with --config.data.train={args.out}")


def _report(what: str, folder: prepared.Prepared) -> None:
    facts = folder.manifest
    print(
        f"{folder.path}: {what}: {facts['slices']} slices, {facts['volumes']} volumes, "
        f"{facts['subjects']} subjects, {facts['bytes'] / 1e6:.1f} MB in "
        f"{len(facts['shards'])} files"
    )


def main() -> None:
    """Command line."""
    from kst_jax.programs import cli  # here: worker processes start faster without JAX

    cli.run(_main)


if __name__ == "__main__":
    main()
