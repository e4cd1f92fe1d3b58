"""Records the fields of view that a network was trained on.

A network sees pixels, not millimetres. In scans of another field of view, structures
have other sizes, so `kst-reconstruct` warns of them.
"""

import json
from collections.abc import Sequence
from pathlib import Path

from kst_jax import parallel
from kst_jax.errors import InputError
from kst_jax.programs import files

NAME = "fields_of_view.json"
Field = tuple[float, float]


def write(workdir: str | Path, fields: Sequence[Field]) -> None:
    """Records heights and widths in mm in a run's folder, once for all processes."""
    if parallel.is_first():
        with files.whole(_path(workdir)) as partial:
            partial.write_text(json.dumps(list(fields)) + "\n")


def read(workdir: str | Path) -> list[Field]:
    """Reads what `write` recorded; empty if nothing is known.

    Raises:
      InputError: the file is damaged.
    """
    path = _path(workdir)
    try:
        found = files.read_json(path) if path.exists() else []
        return [(float(height), float(width)) for height, width in found]
    except (TypeError, ValueError) as error:
        raise InputError(
            f"{path}: is not a list of heights and widths in mm. Copy it again from "
            "where the run was made."
        ) from error


def _path(workdir: str | Path) -> Path:
    return files.local_folder(workdir) / NAME
