"""Records who a model was trained or selected on: it is never tested on them."""

import json
import sys
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

from kst_jax import parallel
from kst_jax.errors import InputError
from kst_jax.programs import files

PARTS = {"train": "trained", "validation": "chosen in validation"}


def write(
    workdir: str | Path, people: Mapping[str, Sequence[str]], carries_on: bool = False
) -> None:
    """Records people in a run's folder, once for all processes.

    Args:
      workdir: folder of the run.
      people: key of PARTS to names.
      carries_on: the run resumes from a checkpoint, so it must have started with the
        same people.

    Raises:
      InputError: the run started with other people.
    """
    for part, subjects in people.items():
        if carries_on:
            _require_same(workdir, part, subjects)
        if parallel.is_first():
            with files.whole(_path(workdir, part)) as partial:
                partial.write_text(json.dumps(list(subjects), indent=1) + "\n")


def read(workdir: str | Path, part: str) -> list[str]:
    """Reads the names that `write` recorded; empty if there are none.

    Raises:
      InputError: the file is damaged.
    """
    path = _path(workdir, part)
    subjects = files.read_json(path) if path.exists() else []
    if not (isinstance(subjects, list) and all(isinstance(s, str) for s in subjects)):
        raise InputError(
            f"{path}: is not a list of names. Copy it again from where the run was "
            "made."
        )
    return subjects


def _require_same(workdir: str | Path, part: str, subjects: Sequence[str]) -> None:
    noted = read(workdir, part)
    _warn_if_unknown(
        workdir, part, noted, "the people in its scans may have changed since it began"
    )
    if noted and (changed := set(noted) ^ set(subjects)):
        raise InputError(
            f"{workdir}: the people in its scans have changed since the run started "
            f"({part}: {', '.join(sorted(changed)[:5])} added or removed). Restore the "
            "scans, or choose a new --workdir."
        )


def require_unseen(
    workdir: str | Path, subjects: Sequence[str], folders: Collection[str] = ()
) -> None:
    """Raises InputError if a model would be tested on people it was trained on.

    Prints a warning if nothing says who it was trained on, or if a folder of the test
    scans has a trained person's name.

    Args:
      workdir: folder of the run.
      subjects: people to test on.
      folders: names of folders of scans that have no better label than a file's name.
    """
    for part, use in PARTS.items():
        noted = read(workdir, part)
        _warn_if_unknown(
            workdir, part, noted, "the model may have been trained on the test scans"
        )
        if seen := sorted(set(noted) & set(subjects)):
            raise InputError(
                f"{seen[0]} is among the test scans, but the model in {workdir} was "
                f"{use} on this person ({len(seen)} such people); give other scans "
                "with --config.data.test"
            )
        if near := sorted(set(noted) & set(folders)):
            print(
                f"warning: a folder of the test scans is called {near[0]}, and the "
                f"model in {workdir} was {use} on a person of this name; if these are "
                "the same, give other scans; say who is who with "
                "--config.data.subjects",
                file=sys.stderr,
            )


def _warn_if_unknown(
    workdir: str | Path, part: str, noted: Sequence[str], danger: str
) -> None:
    """Prints a warning if nobody is noted; validation is optional, training is not."""
    if part == "train" and not noted:
        path = _path(workdir, part)
        what = "names nobody" if path.exists() else "is missing"
        print(
            f"warning: {path} {what}, so {danger}; copy the file from where the run "
            "was made",
            file=sys.stderr,
        )


def _path(workdir: str | Path, part: str) -> Path:
    return files.local_folder(workdir) / f"{part}_subjects.json"
