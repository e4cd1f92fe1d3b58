"""Definition of a study: methods x settings x seeds, and the resulting cells."""

import dataclasses
from collections.abc import Mapping

from ml_collections import ConfigDict

from kst_jax.config import Config, TrainConfig
from kst_jax.config_dict import from_dict
from kst_jax.data_config import CoilsConfig, DataConfig
from kst_jax.errors import InputError, require
from kst_jax.eval_config import EvalConfig
from kst_jax.mask_config import MaskConfig
from kst_jax.models import registry
from kst_jax.models.config import ModelConfig

# The method without learning that every study has.
ZERO_FILLED = "zero_filled"


@dataclasses.dataclass(frozen=True)
class Method:
    """One row of a table.

    Attributes:
      model: section `model` of its runs.
      train: section `train` of its runs, without steps and seed.
      images: training images (steps x batch size); 0 uses the study's number.
      title: name in tables and figures; by default the network's.
      coils: changes to section `data.coils` of the study.
    """

    model: Mapping
    train: Mapping
    images: int = 0
    title: str = ""
    coils: Mapping = dataclasses.field(default_factory=dict)

    def __post_init__(self):
        """Raises InputError for values that cannot be."""
        _require_count("images", self.images)
        require(isinstance(self.title, str), "title", self.title, "a text")


@dataclasses.dataclass(frozen=True)
class Table:
    """Settings as columns, methods as rows.

    Attributes:
      settings: names, in order.
      methods: names, in order.
    """

    settings: tuple[str, ...]
    methods: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Cell:
    """One method at one setting with one seed."""

    setting: str
    method: str
    seed: int

    @property
    def name(self) -> str:
        """SETTING/METHOD/SEED, as in the names of its files."""
        return f"{self.setting}/{self.method}/{self.seed}"


@dataclasses.dataclass(frozen=True)
class Study:
    """The definition of a study.

    Attributes:
      data: scans, the same for every cell and in the same order.
      eval: how the cells are evaluated.
      images: training images that each learned method sees.
      seeds: seeds of the initial parameters.
      references: methods that every other method is compared with.
      order: names of the settings, in the order in which they run.
      settings: name to section `mask` of the runs.
      methods: name to method.
      tables: title to the names of the settings and methods in a table.
    """

    data: DataConfig
    eval: EvalConfig
    images: int
    seeds: tuple[int, ...]
    references: tuple[str, ...]
    order: tuple[str, ...]
    settings: Mapping[str, MaskConfig]
    methods: Mapping[str, Method]
    tables: Mapping[str, Table]

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
    """Builds the study that a config file describes.

    Raises:
      InputError: a key is missing or unknown, a value is out of range, or a table names
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
    kinds = {"settings": MaskConfig, "methods": Method, "tables": Table}
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
    for cell in cells_of(study):
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
    titles = [title_of(study, name) for name in study.methods]
    for title in titles:
        if titles.count(title) > 1:
            raise InputError(f"config.methods: more than one has the title {title!r}")
    for title, table in study.tables.items():
        for group in ("settings", "methods"):
            unknown = set(getattr(table, group)) - set(getattr(study, group))
            if unknown:
                raise InputError(
                    f"config.tables.{title}: {unknown.pop()!r} is not in {group}"
                )


def _require_images(study: Study) -> None:
    """Raises InputError if evaluations would not write images to the cells' folders."""
    if study.eval.figures < 1:
        raise InputError(
            "config.eval.figures=0: a study needs figures; set it to at least 1"
        )
    if study.eval.out:
        raise InputError(
            f"config.eval.out={study.eval.out!r}: each cell of a study has a folder of "
            "its own; leave it empty"
        )


def cells_of(study: Study) -> list[Cell]:
    """Returns the cells that the tables show, in the order in which they run."""
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
    """Returns the config of a cell's run.

    Raises:
      InputError: a key or value of the method is invalid.
    """
    method, where = study.methods[cell.method], f"config.methods.{cell.method}"
    try:
        train = from_dict(method.train, TrainConfig, f"{where}.train")
        steps = (method.images or study.images) // train.batch_size
        train = dataclasses.replace(train, steps=steps, seed=cell.seed)
        model = from_dict(method.model, ModelConfig, f"{where}.model")
        coils = dataclasses.asdict(study.data.coils) | dict(method.coils)
        data = dataclasses.replace(
            study.data, coils=from_dict(coils, CoilsConfig, f"{where}.coils")
        )
        mask = study.settings[cell.setting]
        config = Config(data, mask, model, train, study.eval)
    except InputError as error:
        told = str(error)
        raise InputError(told if where in told else f"{where}: {told}") from None
    if study.eval.checkpoint == "best" and not train.keep_best:
        raise InputError(
            f"config.eval.checkpoint='best' needs {where}.train.keep_best and "
            "validate_every"
        )
    return config


def title_of(study: Study, method: str) -> str:
    """Returns a method's name in tables and figures."""
    if method == ZERO_FILLED:
        names = dict.fromkeys(mask.unaided for mask in study.settings.values())
        return " or ".join(names)
    given = study.methods[method]
    name = given.model.get("name", "kst")
    return given.title or registry.entry(name).network.title
