r"""Methods compared under one protocol: a study of methods x settings x seeds.

    kst-study --config=studies/small --workdir=runs/small \
        --config.data.train=SCANS --config.data.test=OTHER_SCANS

A cell of the study is one method, trained and evaluated at one undersampling setting
with one seed. The same command carries on where it was stopped: a finished cell is not
done again, one that was interrupted goes on from its last checkpoint.

    WORKDIR/results/SETTING/METHOD/SEED.json   what a cell found, slice by slice
    WORKDIR/results/SETTING/METHOD/SEED.npz    its images of the slices in the figures
    WORKDIR/runs/SETTING/METHOD/SEED/          checkpoints, logs and full evaluation
    WORKDIR/tables.md, tables.json, figures/   of the cells that are finished

The results alone make the tables and figures and tell which cells are finished; `runs`
may be deleted or kept elsewhere. --cells picks some of the cells, so that several
machines can share a study in one folder.
"""

import dataclasses
import fnmatch
import sys
from collections.abc import Sequence
from pathlib import Path

import jax

from kst_jax.config_dict import require_key
from kst_jax.errors import DivergedError, InputError
from kst_jax.programs import config_arguments
from kst_jax.programs.arguments import Parser, words
from kst_jax.study import cells, comparison
from kst_jax.study.protocol import Cell, Study, cells_of, read


def _require_key(path: str) -> None:
    """Raises InputError for a misspelt key of the sections that runs have too."""
    section = path.partition(".")[0]
    if section in ("data", "eval"):
        require_key(path)
    elif section not in {field.name for field in dataclasses.fields(Study)}:
        raise InputError(
            f"config has no key {section!r}; see kst_jax/study/protocol.py"
        )


def run(study: Study, workdir: str | Path, patterns: Sequence[str] = ("*",)) -> None:
    """Does the cells that are not finished, and writes tables and figures after each.

    Args:
      study: what is compared.
      workdir: folder of the study.
      patterns: the cells to do have names that match one of these.

    Raises:
      InputError: no such cell, data that cannot be used, the results of another study
        in the folder, or, once all other cells are done, trainings that diverged.
      SystemExit: after SIGTERM, with the cell at hand saved.
    """
    folder = Path(workdir).absolute()
    chosen = _chosen(study, patterns)
    cells.finished(study, folder)  # raises where they are of another study
    diverged = []
    for number, cell in enumerate(chosen, 1):
        is_done = cells.result_path(folder, cell).exists()  # by now, perhaps elsewhere
        print(f"\n[{number}/{len(chosen)}] {cell.name}{': finished' * is_done}")
        if not is_done:
            try:
                cells.run(study, cell, folder)
            except DivergedError as error:
                print(f"warning: {cell.name}: {error}", file=sys.stderr)
                diverged.append(cell.name)
            jax.clear_caches()  # no other cell uses these programs
        if not is_done or number == len(chosen):
            tables = comparison.write(study, cells.finished(study, folder), folder)
    print(f"\n{tables}\nwritten to {folder}")
    if diverged:
        raise InputError(
            f"no results of {', '.join(diverged)}, which diverged; a method of another "
            "name with train.clip_norm=1.0 may not"
        )


def _chosen(study: Study, patterns: Sequence[str]) -> list[Cell]:
    """The cells that any pattern matches; each pattern must match one."""
    if not patterns:
        raise InputError("--cells names none; give patterns, or leave it out for all")
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
        help="cells to do, as patterns: uniform1d_5x/*,*/kst/0",
    )
    config_arguments.run(
        lambda study, workdir, args: run(study, workdir, args.cells),
        parser,
        read=read,
        require_key=_require_key,
    )
