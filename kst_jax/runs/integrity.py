"""Damage of checkpoints: found by checksums, set aside.

Orbax checks its tables but not the arrays' data: without checksums a bit flipped on the
disk would be read as a parameter.
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

    The files beside those folders, where Orbax notes times, are never read.
    """
    files = sorted(file for file in path.glob("*/**/*") if file.is_file())
    sums = {str(file.relative_to(path)): sha256_of(file) for file in files}
    (path / _SUMS).write_text(json.dumps(sums, indent=1) + "\n")


def damage(path: Path) -> str | None:
    """What is wrong with a checkpoint, or None."""
    try:
        sums = dict(read_json(path / _SUMS))
    except FileNotFoundError:
        return f"{_SUMS} is missing"
    except (ValueError, TypeError):  # InputError among them
        return f"{_SUMS} has changed"
    for name, checksum in sums.items():
        if not (path / name).is_file():
            return f"{name} is missing"
        if sha256_of(path / name) != checksum:
            return f"{name} has changed"
    return None


def steps_in(folder: Path) -> list[int]:
    """Steps of the checkpoints in a folder, the latest first."""
    return sorted(ocp.utils.checkpoint_steps(folder), reverse=True)


def survey(folder: Path) -> tuple[list[int], dict[int, str]]:
    """Steps of good checkpoints, the latest first, and what is wrong with the others.

    Raises:
      InputError: all are damaged.
    """
    causes = {step: damage(folder / str(step)) for step in steps_in(folder)}
    good = [step for step, cause in causes.items() if not cause]
    damaged = {step: cause for step, cause in causes.items() if cause}
    if damaged and not good:
        raise InputError(
            f"{folder}: no checkpoint is whole: "
            + "; ".join(f"{step}: {cause}" for step, cause in damaged.items())
            + ". Restore one from a backup, or start anew in another --workdir"
        )
    return good, damaged


def set_damaged_aside(folder: Path) -> None:
    """Renames damaged checkpoints, so that their steps can be saved again.

    Raises:
      InputError: all are damaged; they keep their names.
    """
    # Without a folder too: others may be slower, and find that Orbax has made it.
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
    """Tells of a damaged checkpoint and of the one that is used."""
    print(f"warning: {path} is damaged ({cause}); {instead} is used", file=sys.stderr)
