"""OUT/reconstruct.json: the origin of the images in a folder, and the finished scans.

A finished scan is known by its name and its file's fingerprint. So the same call
resumes an interrupted reconstruction, and another scan of the same name is not taken
for a finished one.
"""

import hashlib
import json
from pathlib import Path
from typing import Any

from kst_jax.data import volumes
from kst_jax.errors import InputError
from kst_jax.evaluation.uncertainty import LEVEL
from kst_jax.programs import files
from kst_jax.reconstruct.methods import Method
from kst_jax.reconstruct.options import Options

FILE = "reconstruct.json"


def origin_of(method: Method, options: Options) -> dict[str, Any]:
    """Describes the origin of the images, apart from the scans."""
    mask, trajectory = options.undersampling.mask, options.trajectory
    calibration = method.calibration
    return {
        "run": method.name,
        "step": method.step,
        "format": options.kind,
        "complex": options.phase,
        "acceleration": options.undersampling.acceleration,
        "mask": None if mask is None else hashlib.sha256(mask.tobytes()).hexdigest(),
        "trajectory": trajectory.path and files.sha256_of(trajectory.path),
        "trajectory_units": trajectory.units or None,
        "uncertainty": calibration
        and {
            "interval": LEVEL,
            "scale": calibration.scale,
            "people": list(calibration.people),
            "networks": sorted(calibration.runs),
        },
        "parameters": list(method.fingerprints),
    }


def finished(
    out: Path, origin: dict[str, Any], results: dict[str, tuple[Path, str]]
) -> dict[str, dict]:
    """Returns the scans that an earlier call has finished in a folder.

    Args:
      out: the folder.
      origin: of the images to write; see `origin_of`.
      results: file and result of each scan to reconstruct, by its name.

    Raises:
      InputError: the folder holds other files, images of another origin, or of other
        scans whose names or results are the same.
    """
    if not (out / FILE).exists():
        if out.is_dir() and any(
            not path.name.startswith(".") for path in out.iterdir()
        ):
            raise InputError(
                f"{out}: is not empty, but has no {FILE}. Choose another folder."
            )
        return {}
    found = files.read_json(out / FILE)
    if not _lists_scans(found):
        raise InputError(
            f"{out / FILE}: does not list the finished scans. Choose another folder."
        )
    for name, value in origin.items():
        if found.get(name) != value:
            raise InputError(
                f"{out}: holds reconstructions with another {name} ({found.get(name)}, "
                f"here {value}). Choose another folder."
            )
    done = {
        scan: about
        for scan, about in found["scans"].items()
        if (out / about["file"]).is_file()
    }
    _require_same_scans(out, done, results)
    return done


def _lists_scans(record: Any) -> bool:
    scans = record.get("scans") if isinstance(record, dict) else None
    return isinstance(scans, dict) and all(
        isinstance(about, dict) and isinstance(about.get("file"), str)
        for about in scans.values()
    )


def _require_same_scans(
    out: Path, done: dict[str, dict], results: dict[str, tuple[Path, str]]
) -> None:
    """Raises InputError if an image there is of another scan than one asked for."""
    owner = {about["file"]: scan for scan, about in done.items()}
    for scan, (path, result) in results.items():
        same = scan in done and done[scan].get("scan") == volumes.fingerprint(path)
        if result in owner and not (same and owner[result] == scan):
            raise InputError(
                f"{out / result}: is the image of another {owner[result]} than {path}, "
                "or of an earlier version of it. Choose another folder."
            )


def write(out: Path, origin: dict[str, Any], done: dict[str, dict]) -> None:
    """Writes the record."""
    with files.whole(out / FILE) as partial:
        partial.write_text(json.dumps(origin | {"scans": done}, indent=1))
