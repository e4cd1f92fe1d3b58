"""Finds damaged checkpoints by their checksums and sets them aside.

Orbax checks its tables but not the arrays' data: without checksums, a bit that flipped
on the disk would be read as a parameter.
"""

import itertools
import json
import sys
from pathlib import Path

import orbax.checkpoint as ocp
from jax.experimental import multihost_utils

from kst_jax import parallel
from kst_jax.errors import InputError
from kst_jax.programs.files import read_json, sha256_of

_SUMS = "checksums.json"


def note(path: Path) -> None:
    """Writes the checksums of all files in the folders of a checkpoint.

    It skips the files beside those folders: Orbax stores times in them, and they are
    never read.
    """
    files = sorted(file for file in path.glob("*/**/*") if file.is_file())
    sums = {str(file.relative_to(path)): sha256_of(file) for file in files}
    (path / _SUMS).write_text(json.dumps(sums, indent=1) + "\n")


def damage(path: Path) -> str | None:
    """Describes what is wrong with a checkpoint; None if it is sound."""
    try:
        sums = dict(read_json(path / _SUMS))
    except FileNotFoundError:
        return f"{_SUMS} is missing"
    except (ValueError, TypeError):  # includes InputError
        return f"{_SUMS} has changed"
    for name, checksum in sums.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256_of(path / name) != checksum:
            return f"{name} has changed"
    return None


def steps_in(folder: Path) -> list[int]:
    """Returns the steps of the checkpoints in a folder, latest first."""
    return sorted(ocp.utils.checkpoint_steps(folder), reverse=True)


def survey(folder: Path) -> tuple[list[int], dict[int, str]]:
    """Returns the steps of good checkpoints, latest first, and the others' damage.

    Raises:
      InputError: all are damaged.
    """
    causes = {step: damage(folder / str(step)) for step in steps_in(folder)}
    good = [step for step, cause in causes.items() if not cause]
    damaged = {step: cause for step, cause in causes.items() if cause}
    if damaged and not good:
        raise InputError(
            f"{folder}: all checkpoints are damaged: "
            + "; ".join(f"{step}: {cause}" for step, cause in damaged.items())
            + ". Restore one from a backup, or start again in another --workdir"
        )
    return good, damaged


def set_damaged_aside(folder: Path) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again.

    Raises:
      InputError: all are damaged; they keep their names.
    """
    # Even without a folder: slower processes may find one that Orbax has just made.
    good, damaged = survey(folder) if folder.is_dir() else ([], {})
    multihost_utils.sync_global_devices("every process knows the damage")
    for step, cause in damaged.items():
        warn(folder / str(step), cause, folder / str(good[0]))
        names = (f"{step}.damaged{n or ''}" for n in itertools.count())
        aside = next(folder / name for name in names if not (folder / name).exists())
        if parallel.is_first():
            (folder / str(step)).rename(aside)
    multihost_utils.sync_global_devices("damaged checkpoints are set aside")


def warn(path: Path, cause: str, instead: Path) -> None:
    """Warns that a checkpoint is damaged and names the one used instead."""
    print(f"warning: {path} is damaged ({cause}); using {instead}", file=sys.stderr)
