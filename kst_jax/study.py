r"""Methods compared under one protocol: a study of methods x settings x seeds.

    python -m kst_jax.study --config=configs/studies/small.py --workdir=runs/small \
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

import contextlib
import dataclasses
import fnmatch
import json
import shutil
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
from absl import flags
from ml_collections import ConfigDict

from kst_jax import agreement, checkpoints, cli, comparison, evaluation, files, training
from kst_jax.config import Config, DataConfig, EvalConfig, MaskConfig, TrainConfig
from kst_jax.config_dict import from_dict, require_key
from kst_jax.errors import InputError, require
from kst_jax.models.contract import ModelConfig

# What does not change the result of a cell.
_MAY_CHANGE = (
    *agreement.TRAINING_MAY_CHANGE,
    *("eval.batch_size", "eval.query_devices"),
)


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
      model: section `model` of its runs.
      train: section `train` of its runs, but steps and seed.
      images: training images (steps x batch size); 0 for the study's.
      title: its name in tables and figures; by default the network's.
    """

    model: Mapping
    train: Mapping
    images: int = 0
    title: str = ""

    def __post_init__(self):
        """Raises InputError for values that cannot be."""
        _require_count("images", self.images)
        require(isinstance(self.title, str), "title", self.title, "a text")


@dataclasses.dataclass(frozen=True)
class Study:
    """What is compared.

    Attributes:
      data: scans, the same for every cell, and in the same order.
      eval: how the cells are evaluated.
      images: training images that each learned method sees.
      seeds: of the initial parameters.
      references: the methods that each of the others is compared with.
      order: names of the settings, in the order in which they are done.
      settings: sections `mask` of the runs, by name.
      methods: by name.
      tables: titles, and the names of the settings and methods that each shows.
    """

    data: DataConfig
    eval: EvalConfig
    images: int
    seeds: tuple[int, ...]
    references: tuple[str, ...]
    order: tuple[str, ...]
    settings: Mapping[str, MaskConfig]
    methods: Mapping[str, Method]
    tables: Mapping[str, comparison.Table]

    def __post_init__(self):
        """Raises InputError for values that cannot be."""
        _require_count("config.images", self.images)
        for seed in self.seeds:
            _require_count("config.seeds", seed)
        require(
            0 < len(set(self.seeds)) == len(self.seeds),
            "config.seeds",
            self.seeds,
            "at least one, each once",
        )


def _require_count(name: str, value: object) -> None:
    require(type(value) is int and value >= 0, name, value, "a whole number, 0 or more")


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method at one setting with one seed."""

    setting: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """SETTING/METHOD/SEED, as its files are called."""
        return f"{self.setting}/{self.method}/{self.seed}"


def read(values: Mapping) -> Study:
    """The study that a config file describes.

    Raises:
      InputError: a missing or unknown key, a value out of range, or a table of
        something that is not in the study.
    """
    if isinstance(values, ConfigDict):
        values = values.to_dict()
    fields = {field.name for field in dataclasses.fields(Study)}
    for name in (*(fields - set(values)), *(set(values) - fields)):
        raise InputError(
            f"config.{name} is {'unknown' if name in values else 'missing'}; a study "
            f"has {', '.join(sorted(fields))}"
        )
    kinds = {"settings": MaskConfig, "methods": Method, "tables": comparison.Table}
    groups = {
        group: {
            name: _one(kind, value, f"config.{group}.{name}")
            for name, value in values[group].items()
        }
        for group, kind in kinds.items()
    }
    study = Study(
        **{
            **values,
            **groups,
            "data": from_dict(values["data"], DataConfig, "config.data"),
            "eval": from_dict(values["eval"], EvalConfig, "config.eval"),
            "seeds": tuple(values["seeds"]),
            "references": tuple(values["references"]),
            "order": tuple(values["order"]),
        }
    )
    _require_whole(study)
    _require_images(study)
    for cell in cells(study):
        config_of(study, cell)
    return study


def _one(kind: type, value: Mapping, where: str) -> object:
    if kind is MaskConfig:
        return from_dict(value, kind, where)
    try:
        return kind(**value)
    except (TypeError, InputError) as error:
        raise InputError(f"{where}: {error}") from None


def _require_whole(study: Study) -> None:
    for name in study.references:
        if name not in study.methods:
            raise InputError(f"config.references: {name!r} is not among methods")
    if sorted(study.order) != sorted(study.settings):
        raise InputError(
            f"config.order={study.order} must name each of config.settings once: "
            f"{', '.join(study.settings)}"
        )
    titles = [comparison.title_of(study, name) for name in study.methods]
    for title in titles:
        if titles.count(title) > 1:
            raise InputError(f"config.methods: several have the title {title!r}")
    for title, table in study.tables.items():
        for group in ("settings", "methods"):
            unknown = set(getattr(table, group)) - set(getattr(study, group))
            if unknown:
                raise InputError(
                    f"config.tables.{title}: {unknown.pop()!r} is not in {group}"
                )


def _require_images(study: Study) -> None:
    """Raises InputError where evaluations would not leave images where they belong."""
    if study.eval.figures < 1:
        raise InputError(
            "config.eval.figures=0 leaves a study without figures; must be at least 1"
        )
    if study.eval.out:
        raise InputError(
            f"config.eval.out={study.eval.out!r}: each cell of a study has a folder of "
            "its own; leave it empty"
        )


def cells(study: Study) -> list[Cell]:
    """The cells that the tables show, in the order in which they are done."""
    tables = study.tables.values()
    rows = dict.fromkeys(name for table in tables for name in table.methods)
    return [
        Cell(setting, method, seed)
        for setting in study.order
        for seed in study.seeds
        for method in rows
        if any(setting in t.settings and method in t.methods for t in tables)
    ]


def config_of(study: Study, cell: Cell) -> Config:
    """The run of a cell.

    Raises:
      InputError: a key or value of the method that cannot be.
    """
    method, where = study.methods[cell.method], f"config.methods.{cell.method}"
    try:
        train = from_dict(method.train, TrainConfig, f"{where}.train")
        steps = (method.images or study.images) // train.batch_size
        train = dataclasses.replace(train, steps=steps, seed=cell.seed)
        model = from_dict(method.model, ModelConfig, f"{where}.model")
        mask = study.settings[cell.setting]
        config = Config(study.data, mask, model, train, study.eval)
    except InputError as error:
        told = str(error)
        raise InputError(told if where in told else f"{where}: {told}") from None
    if study.eval.checkpoint == "best" and not train.keep_best:
        raise InputError(
            f"config.eval.checkpoint='best' needs {where}.train.keep_best and "
            "validate_every"
        )
    return config


def run_cell(study: Study, cell: Cell, workdir: Path) -> None:
    """Trains and evaluates a cell, and writes its result last.

    Raises:
      InputError: data that cannot be used, training that fails.
      SystemExit: after SIGTERM, with the run saved.
    """
    config, run = config_of(study, cell), workdir / "runs" / cell.name
    with _timed(run):
        state = training.train(config, run)
    count = sum(leaf.size for leaf in jax.tree.leaves(state.params))
    found = evaluation.evaluate(config, run)
    seconds, devices = _sittings(run)
    result = {
        "config": dataclasses.asdict(config),
        "parameters": count,
        "images": config.train.steps * config.train.batch_size,
        "train_s": seconds,
        "device": ", ".join(devices),
        "curve": _curve(run),
        "per_slice": _with_subjects(found),
    }
    path = _result_path(workdir, cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    with files.whole(path.with_suffix(".npz")) as partial:
        shutil.copyfile(run / "eval" / "figures" / "slices.npz", partial)
    with files.whole(path) as partial:
        partial.write_text(json.dumps(result) + "\n")


def _result_path(workdir: Path, cell: Cell) -> Path:
    return workdir / "results" / f"{cell.name}.json"


def _with_subjects(report: Any) -> list[dict]:
    volumes = report["per_volume"]
    return [
        row | {"subject": volumes[row["volume"]]["subject"]}
        for row in report["per_slice"]
    ]


def _curve(run: Path) -> dict[str, list[float]]:
    """Training PSNR of the normalised images by the number of images seen."""
    batch = checkpoints.read_config(run).train.batch_size
    text = (run / "train.jsonl").read_text()
    rows = [json.loads(line) for line in text.splitlines()]
    return {
        "images": [row["step"] * batch for row in rows],
        "psnr": [row["psnr"] for row in rows],
    }


@contextlib.contextmanager
def _timed(run: Path) -> Iterator[None]:
    """Notes how long a sitting took and on what, also where it is stopped."""
    started = time.monotonic()
    devices = f"{jax.device_count()} x {jax.devices()[0].device_kind}"
    try:
        yield
    finally:
        run.mkdir(parents=True, exist_ok=True)
        with (run / "sittings.txt").open("a") as file:
            file.write(f"{time.monotonic() - started:.1f} {devices}\n")


def _sittings(run: Path) -> tuple[float, list[str]]:
    """Seconds of all sittings together, and the devices that they were on."""
    lines = (run / "sittings.txt").read_text().splitlines()
    seconds, _, devices = zip(*(line.partition(" ") for line in lines), strict=True)
    return sum(map(float, seconds)), list(dict.fromkeys(devices))


def finished(study: Study, workdir: Path) -> dict[Cell, dict]:
    """Results of the cells that are finished.

    Raises:
      InputError: a result that cannot be read, that is of another config, or of other
        slices than the ones before it.
    """
    results: dict[Cell, dict] = {}
    for cell in cells(study):
        path = _result_path(workdir, cell)
        if not path.exists():
            continue
        try:
            results[cell] = files.read_json(path)
            there = from_dict(results[cell]["config"])
        except (ValueError, KeyError, TypeError, OSError) as error:
            cause = str(error).removeprefix(f"{path}: ")
            raise InputError(
                f"{path}: no result of a cell ({cause}); delete it to do the cell again"
            ) from error
        there, wanted = (
            dataclasses.replace(config, data=config.data.by_name())
            for config in (there, config_of(study, cell))
        )
        agreement.require_same_run(there, wanted, path, _MAY_CHANGE)
        first = next(done for done in results if done.setting == cell.setting)
        if _slices(results[cell]) != _slices(results[first]):
            raise InputError(
                f"{path}: its test slices are not those of {first.name}, with which it "
                "would be compared; delete one of them to do the cell again"
            )
    return results


def _slices(result: dict) -> list[tuple]:
    return [(row["volume"], row["slice"]) for row in result["per_slice"]]


def _require_key(path: str) -> None:
    """Raises InputError for a misspelt key of the sections that runs have too."""
    section = path.partition(".")[0]
    if section in ("data", "eval"):
        require_key(path)
    elif section not in {field.name for field in dataclasses.fields(Study)}:
        raise InputError(f"config has no key {section!r}; see kst_jax/study.py")


def run(study: Study, workdir: str | Path, patterns: Sequence[str] = ("*",)) -> None:
    """Does the cells that are not finished, and writes tables and figures after each.

    Args:
      study: what is compared.
      workdir: folder of the study.
      patterns: the cells to do have names that match one of these.

    Raises:
      InputError: no such cell, data that cannot be used, training that fails, or the
        results of another study in the folder.
      SystemExit: after SIGTERM, with the cell at hand saved.
    """
    folder = Path(workdir).absolute()
    chosen = _chosen(study, patterns)
    finished(study, folder)  # raises where they are of another study
    for number, cell in enumerate(chosen, 1):
        is_done = _result_path(folder, cell).exists()  # by now, perhaps elsewhere
        print(f"\n[{number}/{len(chosen)}] {cell.name}{': finished' * is_done}")
        if not is_done:
            run_cell(study, cell, folder)
            jax.clear_caches()  # no other cell uses these programs
        if not is_done or number == len(chosen):
            tables = comparison.write(study, finished(study, folder), folder)
    print(f"\n{tables}\nwritten to {folder}")


def _chosen(study: Study, patterns: Sequence[str]) -> list[Cell]:
    """The cells that any pattern matches; each pattern must match one."""
    if not patterns:
        raise InputError("--cells names none; give patterns, or leave it out for all")
    chosen: set[Cell] = set()
    for pattern in patterns:
        found = {c for c in cells(study) if fnmatch.fnmatchcase(c.name, pattern)}
        if not found:
            raise InputError(
                f"--cells={pattern}: no such cell; there are "
                f"{', '.join(cell.name for cell in cells(study))}"
            )
        chosen |= found
    return [cell for cell in cells(study) if cell in chosen]


def main(study: Study, workdir: str) -> None:
    """Command line."""
    run(study, workdir, flags.FLAGS.cells)


if __name__ == "__main__":
    flags.DEFINE_list(
        "cells", ["*"], "Cells to do, as patterns: uniform1d_5x/*,*/kst/0."
    )
    cli.run_with_config(main, read=read, require_key=_require_key, may_join=False)
