"""Whom a model is trained or chosen on, so that it is not tested on them."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

from kst_jax import parallel
from kst_jax.errors import InputError
from kst_jax.programs import files

PARTS = {"train": "trained", "validation": "chosen in validation"}


def write(
    workdir: str | Path, people: Mapping[str, Sequence[str]], carries_on: bool = False
) -> None:
    """Notes them in a run's folder, once for all processes.

    Args:
      workdir: folder of the run.
      people: names, by keys of PARTS.
      carries_on: the run has a checkpoint, and must have been begun with them.

    Raises:
      InputError: it was begun with other people.
    """
    for part, subjects in people.items():
        if carries_on:
            _require_same(workdir, part, subjects)
        if parallel.is_first():
            with files.whole(_path(workdir, part)) as partial:
                partial.write_text(json.dumps(list(subjects), indent=1) + "\n")


def read(workdir: str | Path, part: str) -> list[str]:
    """What `write` noted; empty where nothing was.

    Raises:
      InputError: the file is damaged.
    """
    path = _path(workdir, part)
    subjects = files.read_json(path) if path.exists() else []
    if not (isinstance(subjects, list) and all(isinstance(s, str) for s in subjects)):
        raise InputError(
            f"{path}: holds no list of names. Copy it again from where the run was "
            "made."
        )
    return subjects


def _require_same(workdir: str | Path, part: str, subjects: Sequence[str]) -> None:
    noted = read(workdir, part)
    if noted and (changed := set(noted) ^ set(subjects)):
        raise InputError(
            f"{workdir}: the run was begun with other people than its scans are of now "
            f"({part}: {', '.join(sorted(changed)[:5])} came or went). Put the scans "
            "back, or choose a new --workdir."
        )


def require_unseen(workdir: str | Path, subjects: Sequence[str]) -> None:
    """Raises InputError where a model would be tested on those it was made from."""
    for part, use in PARTS.items():
        if seen := sorted(set(read(workdir, part)) & set(subjects)):
            raise InputError(
                f"{seen[0]} is among the test scans, but the model in {workdir} was "
                f"{use} on this person ({len(seen)} such people); name other scans "
                "with --config.data.test"
            )


def _path(workdir: str | Path, part: str) -> Path:
    return Path(workdir) / f"{part}_subjects.json"
