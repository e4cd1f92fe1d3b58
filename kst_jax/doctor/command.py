"""Reads scans as a run would, and says what they are and what is wrong with them.

    kst-doctor /data/singlecoil_train /data/singlecoil_val

It reads one file after another and reports each at once, with remedies. It writes
nothing. `kst_jax/doctor/examination.py` has the checks.
"""

import collections
import dataclasses
import json
import os
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

from kst_jax.data import finding, labels
from kst_jax.data.labels import Found
from kst_jax.data.native import Grid
from kst_jax.data.volumes import add_options, selection_of
from kst_jax.data_config import CoilsConfig, DataConfig, Selection
from kst_jax.doctor.examination import (
    Examination,
    examine,
    examine_others,
    patient_of,
)
from kst_jax.errors import InputError
from kst_jax.programs import cli
from kst_jax.programs.arguments import Parser

_ROW = "{:<9} {:<16} {:<10} {:>5} {:<11} {:>7} {:>9} {:>20} {:<9} {:>8} {:>8}  {}"
_HEADINGS = (
    *("kind", "array", "type", "coils", "axes", "slices", "size", "values"),
    *("k-space", "decode", "hold", "file"),
)
_EPILOG = """
An error stops a run. A warning does not, but something is probably wrong. A note is
harmless.

columns:
  array, type   what is stored
  axes          directions of the array's axes: right or left, anterior or posterior,
                superior or inferior
  slices        number of slices that a run uses, and of all
  size          rows and columns of these slices; with --native, as networks see them
  values        least and largest value in the file's units; magnitudes of complex ones
  k-space       measured, or to be simulated from the images
  decode        memory to read one slice, or to decode a NIfTI or Analyze volume
  hold          memory of all its slices as complex images

memory:
  the names of all files, and `decode` of one file at a time

exit code:
  0  nothing is wrong
  1  errors or warnings
  2  a wrong command, or no scan was found
"""


@dataclasses.dataclass
class Group:
    """Slices that a native run may put into one batch.

    Attributes:
      scans: number of scans that have such slices.
      slices: number of slices.
    """

    scans: int = 0
    slices: int = 0


@dataclasses.dataclass
class Summary:
    """Findings about all scans together.

    Attributes:
      scans: number of scans that could be opened.
      people: whose scans they are.
      errors: number of errors.
      warnings: number of warnings.
      sizes: for each size (rows, columns), number of scans that have slices of it.
      groups: the slices of a native run, by what they share; otherwise empty.
    """

    scans: int = 0
    people: set[str] = dataclasses.field(default_factory=set)
    errors: int = 0
    warnings: int = 0
    sizes: collections.Counter = dataclasses.field(default_factory=collections.Counter)
    groups: dict[Grid, Group] = dataclasses.field(default_factory=dict)

    def add(self, found: Examination) -> None:
        """Adds one scan."""
        self.scans += found.slices is not None
        if found.subject is not None:
            self.people.add(found.subject)
        self.errors += sum(f.level == "error" for f in found.findings)
        self.warnings += sum(f.level == "warning" for f in found.findings)
        self.sizes.update(found.sizes)
        if found.grid is not None:
            group = self.groups.setdefault(found.grid, Group())
            group.scans += 1
            group.slices += found.slices or 0

    def __str__(self) -> str:
        text = (
            f"{self.scans} scans of {len(self.people)} people opened; "
            f"{self.errors} errors, {self.warnings} warnings"
        )
        if self.groups:
            return "\n".join([text, *self._batches()])
        if len(self.sizes) < 2:
            return text
        sizes = (f"{_size(size)} in {n}" for size, n in self.sizes.most_common(5))
        return (
            f"{text}\n  note: slices of {len(self.sizes)} sizes: {', '.join(sizes)}. A "
            "run cuts all to data.crop, if they are large enough."
        )

    def _batches(self) -> Iterator[str]:
        """Describes the groups of a native run, in its order."""
        yield "  note: batches of a native run, each kind with a program of its own:"
        for grid, group in sorted(self.groups.items()):
            yield (
                f"    {_size(grid.shape)}, scored in the middle "
                f"{_size(grid.field or grid.shape)}: {group.slices} slices of "
                f"{group.scans} scans"
            )


def examinations(
    paths: str, data: DataConfig, selection: Selection
) -> Iterator[Examination]:
    """Examines the scans that a run would read, and those it would pass over.

    Args:
      paths: as for `sources.open_source`.
      data: coils of a run, and its size, crop and padding or that it is native.
      selection: slices that the run uses.

    Raises:
      InputError: a path does not exist, or there is no scan at all.
    """
    everything = {part: finding.everything(part) for part in finding.parts_of(paths)}
    failures: dict[str, InputError] = {}
    for part in everything:
        try:
            finding.find_part(part)
        except InputError as error:
            failures[part] = error
    good = [part for part in everything if part not in failures]
    scans = finding.find(",".join(good)) if good else []
    known = {os.path.abspath(scan.path) for scan in scans}
    others = {os.path.abspath(p): p for part in everything.values() for p in part}
    passed_over = examine_others(p for name, p in others.items() if name not in known)
    if failures and not (scans or passed_over):
        raise next(iter(failures.values()))
    for part, failure in failures.items():
        failed = Examination(Path(part))
        failed.add("error", failure)
        yield failed
    yield from passed_over
    together = Examination(Path(paths))
    names, people = _labels(scans, selection, together)
    if together.findings:
        yield together
    rows = zip(scans, names, people, strict=True)
    for scan, name, subject in tqdm(
        rows, "Examining", total=len(scans), unit="scan", disable=None
    ):
        yield examine(scan.path, data, selection, name, subject)


def _labels(
    scans: Sequence[Found], selection: Selection, together: Examination
) -> tuple[Sequence[str], Sequence[str | None]]:
    """Returns names and people of scans; notes what is wrong with all of them."""
    paths = [scan.path for scan in scans]
    names: Sequence[str] = [path.name for path in paths]
    people: Sequence[str | None] = [None] * len(scans)
    try:
        names = labels.file_names(paths)
        patients = [patient_of(path) for path in paths]
        people, remarks = labels.subjects(scans, patients, selection.subjects)
        for remark in remarks:
            together.add(remark.level, remark.text)
    except InputError as error:
        together.add("error", error)
    return names, people


def row(found: Examination) -> str:
    """Formats a line of the table, and a line for each finding."""
    simulated = {None: None, True: "measured", False: "simulated"}
    sizes = [_size(size) for size in found.sizes]
    values = (
        found.kind.removeprefix("gzip-compressed "),
        found.stored and _size(found.stored),
        found.dtype,
        found.coils,
        found.orientation,
        None if found.slices is None else f"{found.slices}/{found.depth}",
        "various" if sizes[1:] else "".join(sizes),
        None if found.high is None else f"{found.low:.3g} to {found.high:.3g}",
        simulated[found.measured],
        _mebibytes(found.decoding),
        _mebibytes(found.holding),
        found.path,
    )
    line = _ROW.format(
        *("-" if value in (None, "") else str(value) for value in values)
    )
    return "\n".join([line, *(f"  {f.level}: {f.what}" for f in found.findings)])


def _size(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape))


def _mebibytes(count: int | None) -> str | None:
    return f"{count / 2**20:.1f} MiB" if count else None


def report(examined: Iterable[Examination], as_json: bool = False) -> Summary:
    """Prints a line for each scan, as a table or JSON, and then the summary."""
    summary = Summary()
    for number, found in enumerate(examined):
        if not (number or as_json):
            tqdm.write(_ROW.format(*_HEADINGS))
        tqdm.write(json.dumps(_as_json(found)) if as_json else row(found))
        summary.add(found)
    tqdm.write(json.dumps({"summary": _as_json(summary)}) if as_json else f"{summary}")
    return summary


def _as_json(value: Examination | Summary) -> dict[str, Any]:
    fields = dataclasses.asdict(value)
    if isinstance(value, Summary):
        sizes = [[*size, count] for size, count in value.sizes.items()]
        groups = [
            grid._asdict() | dataclasses.asdict(group)
            for grid, group in sorted(value.groups.items())
        ]
        return fields | {
            "people": len(value.people),
            "sizes": sizes,
            "groups": groups,
        }
    return fields | {"path": str(value.path)}


def _main() -> None:
    parser = Parser("kst-doctor", __doc__, _EPILOG)
    add, default = parser.add_argument, DataConfig()
    add(
        "paths",
        nargs="+",
        metavar="PATH",
        help="as for data.train: a folder, a file or a pattern",
    )
    add("--json", action="store_true", help="one JSON object a line, summary last")
    for name, what in (
        ("size", "of images in a run, as data.size"),
        ("crop", "to cut from each slice first, as data.crop; 0 0 cuts to the size"),
    ):
        add(
            f"--{name}",
            type=int,
            nargs=2,
            default=getattr(default, name),
            metavar=("ROWS", "COLUMNS"),
            help=f"{what} ({' '.join(map(str, getattr(default, name)))})",
        )
    add("--pad", action="store_true", help="zero-pad small slices, as data.pad=True")
    add(
        "--native",
        action="store_true",
        help="keep measured sizes, as data.native=True; without --crop and --pad",
    )
    add(
        "--coils",
        type=int,
        default=default.coils.count,
        help="coils that networks see, as data.coils.count (1)",
    )
    add_options(parser)
    args = parser.parse_args()
    data = DataConfig(
        size=args.size,
        crop=args.crop,
        pad=args.pad,
        native=args.native,
        coils=CoilsConfig(count=args.coils),
    )
    examined = examinations(",".join(args.paths), data, selection_of(args))
    summary = report(examined, args.json)
    sys.exit(1 if summary.errors or summary.warnings else 0)


def main() -> None:
    """Examines the scans on the command line; exits with 0, 1 or 2."""
    cli.run(_main, refusal=2)
