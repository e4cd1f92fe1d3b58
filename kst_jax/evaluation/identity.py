"""Identifies evaluations, so that one never overwrites the results of another."""

import dataclasses
import os
from pathlib import Path, PurePath
from typing import Any

from kst_jax.config import Config
from kst_jax.data import opening
from kst_jax.data.sources import Source
from kst_jax.data_config import last_names
from kst_jax.programs import files


def identify(out: Path, config: Config, workdir: str | Path) -> dict[str, Any]:
    """Identifies an evaluation but for its scans' contents: see `require_same_volumes`.

    Paths of runs are relative to the results, so both can be moved together.
    """
    data = dataclasses.asdict(config.data)
    for name in (
        *("augment", "validation", "validation_fraction"),
        *("workers", "threads", "prefetch"),
        *(["train"] if config.data.test else []),  # else the test set comes from it
    ):
        del data[name]
    return {
        "data": data,
        "mask": dataclasses.asdict(config.mask),
        "bank": opening.bank_checksum(config),
        "seed": config.eval.seed,
        "run": relative(workdir, out),
        "members": [relative(run, out) for run in config.eval.further_runs],
        "calibration": config.eval.calibration
        and relative(config.eval.calibration, out),
    }


def relative(folder: str | Path, out: Path) -> str:
    """Returns the path from the results to a folder; neither has links in it."""
    return os.path.relpath(files.local_folder(folder).resolve(), out.resolve())


def require_same_test(out: Path, test: dict[str, Any]) -> None:
    """Raises InputError if a folder holds the results of another evaluation.

    Paths are compared by their last names: scans may be moved. A bank of masks is
    compared by its contents as well.
    """
    files.require_same_json(
        out / "metrics.json",
        "test",
        test,
        f"{out}: holds the results of other scans, another undersampling or another "
        "run; choose another folder with --config.eval.out",
        _same_test,
    )


def require_same_volumes(out: Path, source: Source) -> None:
    """Raises InputError if a folder holds the results of other scans.

    These have other names, or files of the same names with other contents.
    """
    files.require_same_json(
        out / "metrics.json",
        "per_volume",
        source.fingerprints,
        f"{out}: holds the results of other scans; choose another folder with "
        "--config.eval.out",
        _same_volumes,
    )


def _same_test(there: dict[str, Any], here: dict[str, Any]) -> bool:
    # Older results do not have the checksum.
    return _by_name({"bank": here["bank"]} | there) == _by_name(here)


def _same_volumes(there: dict[str, dict], here: dict[str, dict]) -> bool:
    # Older results lack some of it.
    return there.keys() == here.keys() and all(
        here[name] | there[name] == there[name] | here[name] for name in here
    )


def _by_name(test: dict[str, Any]) -> dict[str, Any]:
    # Older results do not have these.
    data = {"subjects": "", "native": False} | test["data"]
    paths = {part: last_names(data[part]) for part in ("train", "test") if part in data}
    bank = PurePath(test["mask"]["bank"]).name
    test = {"members": [], "calibration": ""} | test
    return test | {"data": data | paths, "mask": test["mask"] | {"bank": bank}}
