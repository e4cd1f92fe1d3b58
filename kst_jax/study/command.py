r"""Compares methods under one protocol: a study of methods x settings x seeds.

    kst-study --config=studies/small --workdir=runs/small \
        --config.data.train=SCANS --config.data.test=OTHER_SCANS

A cell of the study is one method, trained and evaluated at one undersampling setting
with one seed. The same command resumes a stopped study: it skips finished cells and
continues an interrupted one from its last checkpoint.

    WORKDIR/results/SETTING/METHOD/SEED.json   a cell's scores, slice by slice
    WORKDIR/results/SETTING/METHOD/SEED.npz    its images of the slices in the figures
    WORKDIR/runs/SETTING/METHOD/SEED/          checkpoints, logs and full evaluation
    WORKDIR/maps/                              sensitivity maps, with several coils
    WORKDIR/tables.md, tables.json, figures/   from the finished cells

Tables, figures and the list of finished cells depend only on the results; `runs` may be
deleted or kept elsewhere. --cells selects some of the cells, so that several machines
can share a study in one folder.

--clock trains nothing: it times a train step of each selected cell, in turn, which
tells how many images make two methods train for as long. Pin it to a core:

    taskset -c 0 kst-study --config=studies/attention --workdir=runs/attention \
        --cells='uniform1d_5x/*' --clock=7
"""

import argparse
import dataclasses
import fnmatch
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from kst_jax.config_dict import require_key
from kst_jax.errors import DivergedError, InputError
from kst_jax.programs import config_arguments, files
from kst_jax.programs.arguments import Parser, words
from kst_jax.study import cells, clock, comparison
from kst_jax.study.protocol import Cell, Study, cells_of, read


def _require_key(path: str) -> None:
    """Raises InputError for a misspelt key in a section that runs also have."""
    section = path.partition(".")[0]
    if section in ("data", "eval"):
        require_key(path)
    elif section not in {field.name for field in dataclasses.fields(Study)}:
        raise InputError(
            f"config has no key {section!r}; see kst_jax/study/protocol.py"
        )


def run(study: Study, workdir: str | Path, patterns: Sequence[str] = ("*",)) -> None:
    """Runs the unfinished cells, and writes tables and figures after each.

    Args:
      study: the study.
      workdir: folder of the study.
      patterns: patterns of cell names; a cell runs if its name matches any of them.

    Raises:
      InputError: a pattern matches no cell, the data is unusable, the folder holds the
        results of another study, or, after all other cells, a training diverged.
      SystemExit: after SIGTERM, with the current cell saved.
    """
    folder = files.local_folder(workdir)
    chosen = _chosen(study, patterns)
    cells.finished(study, folder)  # raises for results of another study
    diverged = []
    for number, cell in enumerate(chosen, 1):
        is_done = cells.result_path(folder, cell).exists()  # perhaps by another machine
        print(f"\n[{number}/{len(chosen)}] {cell.name}{': finished' * is_done}")
        if not is_done:
            try:
                cells.run(study, cell, folder)
            except DivergedError as error:
                print(f"warning: {cell.name}: {error}", file=sys.stderr)
                diverged.append(cell.name)
            jax.clear_caches()  # other cells do not use these programs
        if not is_done or number == len(chosen):
            tables = comparison.write(study, cells.finished(study, folder), folder)
    print(f"\n{tables}\nwritten to {folder}")
    if diverged:
        raise InputError(
            f"no results for {', '.join(diverged)}: training diverged; add a method "
            "with train.clip_norm=1.0, under another name, which may converge"
        )


def time_steps(
    study: Study, workdir: str | Path, patterns: Sequence[str], rounds: int
) -> None:
    """Times the train steps of cells, prints a table and writes WORKDIR/clock.json.

    Raises:
      InputError: a pattern matches no cell, there is no round, or the folder cannot
        be written.
    """
    if rounds < 1:
        raise InputError(f"--clock={rounds}: give at least 1 round")
    folder = files.local_folder(workdir)
    files.make_folder(folder)
    seconds = clock.measure(study, _chosen(study, patterns), rounds)
    with files.whole(folder / "clock.json") as partial:
        partial.write_text(json.dumps(seconds, indent=2) + "\n")
    print(f"{clock.table(seconds)}\nwritten to {folder / 'clock.json'}")


def _chosen(study: Study, patterns: Sequence[str]) -> list[Cell]:
    """Returns the cells that match any pattern; each pattern must match one."""
    if not patterns:
        raise InputError("--cells is empty; give patterns, or omit it for all cells")
    chosen: set[Cell] = set()
    for pattern in patterns:
        found = {c for c in cells_of(study) if fnmatch.fnmatchcase(c.name, pattern)}
        if not found:
            raise InputError(
                f"--cells={pattern}: no such cell; there are "
                f"{', '.join(cell.name for cell in cells_of(study))}"
            )
        chosen |= found
    return [cell for cell in cells_of(study) if cell in chosen]


def main() -> None:
    """Command line."""
    parser = Parser("kst-study", __doc__)
    parser.add_argument(
        "--cells",
        type=words,
        default=["*"],
        help="cells to run, as patterns: uniform1d_5x/*,*/kst/0",
    )
    parser.add_argument(
        "--clock",
        type=int,
        metavar="ROUNDS",
        help="time so many train steps of each cell, in turn, and train nothing",
    )

    def start(study: Study, workdir: str, args: argparse.Namespace) -> None:
        if args.clock is not None:
            time_steps(study, workdir, args.cells, args.clock)
        else:
            run(study, workdir, args.cells)

    config_arguments.run(
        start,
        parser,
        read=read,
        require_key=_require_key,
    )
