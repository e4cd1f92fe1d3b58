"""Records the files that a network is trained on: a run resumes with the same ones."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from kst_jax import parallel
from kst_jax.errors import InputError
from kst_jax.programs import files

NAME = "training_files.json"
# Part of the record to what messages call it.
_PARTS = {"scans": "training scans", "bank": "bank of masks"}


def write(
    workdir: str | Path,
    scans: Mapping[str, dict[str, Any]],
    bank: Mapping[str, str],
    *,
    carries_on: bool = False,
) -> None:
    """Records files in a run's folder, once for all processes.

    Args:
      workdir: folder of the run.
      scans: `Source.fingerprints` of the training scans.
      bank: `opening.bank_checksum` of the run.
      carries_on: the run resumes from a checkpoint, so it must have started with the
        same files. An earlier version recorded none: then nothing is known.

    Raises:
      InputError: the run started with other files, or the record is damaged.
    """
    path = files.local_folder(workdir) / NAME
    found: dict[str, dict[str, Any]] = {"scans": dict(scans), "bank": dict(bank)}
    if carries_on:
        if path.exists():
            _require_same(path, found)
    elif parallel.is_first():
        with files.whole(path) as partial:
            partial.write_text(json.dumps(found, indent=1) + "\n")


def _require_same(path: Path, found: dict[str, dict[str, Any]]) -> None:
    noted = files.read_json(path)
    for part, what in _PARTS.items():
        there, here = noted.get(part) if isinstance(noted, dict) else None, found[part]
        if not isinstance(there, dict):
            raise InputError(
                f"{path}: is not a record of scans and masks. Copy it again from where "
                "the run was made."
            )
        for name in sorted(there | here):
            if there.get(name) != here.get(name):
                raise InputError(
                    f"{path.parent}: the {what} changed since the run started: {name} "
                    f"{_change(name, there, here)}. Put the files back as they were, "
                    "or choose a new --workdir."
                )


def _change(name: str, there: dict[str, Any], here: dict[str, Any]) -> str:
    if name not in there:
        return "was added"
    return "differs" if name in here else "is missing"
