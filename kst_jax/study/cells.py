"""Cells of a study: a method, trained and evaluated at one setting with one seed."""

import contextlib
import dataclasses
import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jax

from kst_jax.config_dict import from_saved
from kst_jax.errors import InputError
from kst_jax.evaluation import evaluate
from kst_jax.programs import files
from kst_jax.runs import agreement
from kst_jax.study.protocol import Cell, Study, cells_of, config_of
from kst_jax.training import loop

# Settings that do not change the result of a cell.
_MAY_CHANGE = (
    *agreement.TRAINING_MAY_CHANGE,
    *("eval.batch_size", "eval.query_devices"),
)


def run(study: Study, cell: Cell, workdir: Path) -> None:
    """Trains and evaluates a cell, and writes its result last.

    Raises:
      InputError: the data is unusable.
      DivergedError: the training diverged.
      SystemExit: after SIGTERM, with the run saved.
    """
    config, run = config_of(study, cell), workdir / "runs" / cell.name
    maps = workdir / "maps"  # for all cells
    with _timed(run):
        state = loop.train(config, run, maps)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    found = evaluate.evaluate(config, run, maps)
    seconds, devices = _sittings(run)
    result = {
        "config": dataclasses.asdict(config),
        "parameters": count,
        "images": config.train.steps * config.train.batch_size,
        "train_s": seconds,
        "device": ", ".join(devices),
        "curve": _curve(run, config.train.batch_size),
        "per_slice": _with_subjects(found),
    }
    path = result_path(workdir, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path.with_suffix(".npz")) as partial:
        shutil.copyfile(run / "eval" / "figures" / "slices.npz", partial)
    with files.whole(path) as partial:
        partial.write_text(json.dumps(result) + "\n")


def result_path(workdir: Path, cell: Cell) -> Path:
    """Returns the path of a cell's result, which exists once it is finished."""
    return workdir / "results" / f"{cell.name}.json"


def _with_subjects(report: Any) -> list[dict]:
    volumes = report["per_volume"]
    return [
        row | {"subject": volumes[row["volume"]]["subject"]}
        for row in report["per_slice"]
    ]


def _curve(run: Path, batch_size: int) -> dict[str, list[float]]:
    """Returns the training PSNR of normalised images over the number of images seen."""
    text = (run / "train.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return {
        "images": [row["step"] * batch_size for row in rows],
        "psnr": [row["psnr"] for row in rows],
    }


@contextlib.contextmanager
def _timed(run: Path) -> Iterator[None]:
    """Records the time and devices of a session, even if it is stopped."""
    started = time.monotonic()
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    try:
        yield
    finally:
        run.mkdir(parents=True, exist_ok=True)
        with (run / "sittings.txt").open("a") as file:
            file.write(f"{time.monotonic() - started:.1f} {devices}\n")


def _sittings(run: Path) -> tuple[float, list[str]]:
    """Returns the total seconds of all sessions, and their devices."""
    lines = (run / "sittings.txt").read_text().splitlines()
    seconds, _, devices = zip(*(line.partition(" ") for line in lines), strict=True)
    return sum(map(float, seconds)), list(dict.fromkeys(devices))


def finished(study: Study, workdir: Path) -> dict[Cell, dict]:
    """Reads the results of the finished cells.

    Raises:
      InputError: a result is unreadable, has another config, or has other slices than
        the results before it.
    """
    results: dict[Cell, dict] = {}
    for cell in cells_of(study):
        path = result_path(workdir, cell)
        if not path.exists():
            continue
        try:
            results[cell] = files.read_json(path)
            there = from_saved(results[cell]["config"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            cause = str(error).removeprefix(f"{path}: ")
            raise InputError(
                f"{path}: not a cell's result ({cause}); delete it to rerun the cell"
            ) from error
        agreement.require_same_run(there, config_of(study, cell), path, _MAY_CHANGE)
        first = next(done for done in results if done.setting == cell.setting)
        if _slices(results[cell]) != _slices(results[first]):
            raise InputError(
                f"{path}: its test slices differ from those of {first.name}, so they "
                "cannot be compared; delete one of them to rerun the cell"
            )
    return results


def _slices(result: dict) -> list[tuple]:
    return [(row["volume"], row["slice"]) for row in result["per_slice"]]
