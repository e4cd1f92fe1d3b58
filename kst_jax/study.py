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

import dataclasses
import fnmatch
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

import jax
from absl import flags
from ml_collections import ConfigDict

from kst_jax import cells, cli, comparison
from kst_jax.cells import Cell
from kst_jax.config import DataConfig, EvalConfig, MaskConfig
from kst_jax.config_dict import from_dict, require_key
from kst_jax.errors import DivergedError, InputError, require


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
    for cell in cells.of(study):
        cells.config_of(study, cell)
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
      InputError: no such cell, data that cannot be used, the results of another study
        in the folder, or, once all other cells are done, trainings that diverged.
      SystemExit: after SIGTERM, with the cell at hand saved.
    """
    folder = Path(workdir).absolute()
    chosen = _chosen(study, patterns)
    cells.finished(study, folder)  # raises where they are of another study
    diverged = []
    for number, cell in enumerate(chosen, 1):
        is_done = cells.result_path(folder, cell).exists()  # by now, perhaps elsewhere
        print(f"\n[{number}/{len(chosen)}] {cell.name}{': finished' * is_done}")
        if not is_done:
            try:
                cells.run(study, cell, folder)
            except DivergedError as error:
                print(f"warning: {cell.name}: {error}", file=sys.stderr)
                diverged.append(cell.name)
            jax.clear_caches()  # no other cell uses these programs
        if not is_done or number == len(chosen):
            tables = comparison.write(study, cells.finished(study, folder), folder)
    print(f"\n{tables}\nwritten to {folder}")
    if diverged:
        raise InputError(
            f"no results of {', '.join(diverged)}, which diverged; a method of another "
            "name with train.clip_norm=1.0 may not"
        )


def _chosen(study: Study, patterns: Sequence[str]) -> list[Cell]:
    """The cells that any pattern matches; each pattern must match one."""
    if not patterns:
        raise InputError("--cells names none; give patterns, or leave it out for all")
    chosen: set[Cell] = set()
    for pattern in patterns:
        found = {c for c in cells.of(study) if fnmatch.fnmatchcase(c.name, pattern)}
        if not found:
            raise InputError(
                f"--cells={pattern}: no such cell; there are "
                f"{', '.join(cell.name for cell in cells.of(study))}"
            )
        chosen |= found
    return [cell for cell in cells.of(study) if cell in chosen]


def main(study: Study, workdir: str) -> None:
    """Command line."""
    run(study, workdir, flags.FLAGS.cells)


if __name__ == "__main__":
    flags.DEFINE_list(
        "cells", ["*"], "Cells to do, as patterns: uniform1d_5x/*,*/kst/0."
    )
    cli.run_with_config(main, read=read, require_key=_require_key, may_join=False)
