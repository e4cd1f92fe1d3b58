"""Configs as the nested keys and values of config files, flags and JSON.

Config files (`configs/`) start from `as_config_dict(Config())` and change what differs;
`from_dict` turns the result back into the checked dataclasses of `kst_jax.config`.
"""

import dataclasses
import typing
from collections.abc import Mapping

from ml_collections import ConfigDict, FieldReference

from kst_jax.config import Config
from kst_jax.errors import InputError
from kst_jax.models import registry
from kst_jax.models.config import KSTConfig, ModelConfig

# Values of settings in `data` that version 0.1 did not have. Its `data.seed` was the
# seed of the split and of the draw of slices as well.
_BEFORE_0_2 = {"normalise": "target", "resize": "plain"}


def as_config_dict(config: Config) -> ConfigDict:
    """Returns the config as a ConfigDict, which config files and flags may change."""
    values = ConfigDict(dataclasses.asdict(config))
    for name in ("acceleration", "center_fraction"):
        # One number or several; otherwise a ConfigDict would insist on the first type.
        value = getattr(config.mask, name)
        del values.mask[name]
        values.mask[name] = FieldReference(value, field_type=object)
    return values


def from_dict(
    values: Mapping, kind: type = Config, where: str = "config"
) -> typing.Any:
    """Builds the dataclass `kind` from nested mappings.

    Raises:
      InputError: an unknown key (the valid ones are listed) or a value out of range.
    """
    if not isinstance(values, Mapping | ConfigDict):
        raise InputError(f"{where}={values!r} is not a section: give keys and values")
    if kind is ModelConfig:  # each network has its own subclass
        kind = registry.entry(values.get("name", KSTConfig.name)).config
    fields: dict[str, typing.Any] = {n: _field(kind, n, where) for n in values}
    return kind(
        **{
            name: from_dict(value, fields[name].type, f"{where}.{name}")
            if dataclasses.is_dataclass(fields[name].type)
            else _checked(value, fields[name], where)
            for name, value in values.items()
        }
    )


def from_saved(values: Mapping) -> Config:
    """The config of a run, which an earlier version may have saved.

    Settings that came later have the value by which that version worked.

    Raises:
      InputError: as `from_dict`.
    """
    if isinstance(values, Mapping) and isinstance(values.get("data"), Mapping):
        data = values["data"]
        seeds = dict.fromkeys(("split_seed", "draw_seed"), data.get("seed", 0))
        values = {**values, "data": _BEFORE_0_2 | seeds | data}
    return from_dict(values)


def require_key(path: str) -> None:
    """Raises InputError for a key such as "data.trian"; the valid ones are listed."""
    kind: typing.Any = Config
    where = "config"
    if path.startswith("model."):  # the valid keys depend on the file's network
        return
    for name in path.split("."):
        if not dataclasses.is_dataclass(kind):
            raise InputError(f"{where} is a value, not a section: remove .{name}")
        kind, where = _field(kind, name, where).type, f"{where}.{name}"


def _field(kind: typing.Any, name: str, where: str) -> dataclasses.Field:
    fields = {field.name: field for field in dataclasses.fields(kind)}
    if name not in fields:
        hint = ""
        if issubclass(kind, ModelConfig):
            hint = "; each network has its own config in configs/"
        raise InputError(
            f"{where} has no key {name!r}; valid keys: {', '.join(sorted(fields))}"
            f"{hint}"
        )
    return fields[name]


def _checked(value: typing.Any, field: dataclasses.Field, where: str) -> typing.Any:
    """Returns the value if it has the type of the field's default."""
    default = field.default
    if isinstance(default, tuple):
        good = isinstance(value, tuple | list) and len(value) == len(default)
        kinds = int if isinstance(default[0], int) else int | float
        good = good and all(isinstance(x, kinds) for x in value)
    elif isinstance(default, float):
        numbers = [value]
        if isinstance(value, tuple | list) and field.type is not float:
            numbers = list(value)  # one number, or several
        good = all(
            isinstance(x, int | float) and not isinstance(x, bool) for x in numbers
        )
    else:
        good = type(value) is type(default)
    if not good:
        raise InputError(
            f"{where}.{field.name}={value!r} cannot be used: give a value like "
            f"{default!r}"
        )
    return value
