"""Checks that a checkpoint, its run and a config belong together."""

import dataclasses
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import linen as nn

from kst_jax.config import Config
from kst_jax.data_config import DataConfig
from kst_jax.errors import InputError
from kst_jax.tokens import Batch

# Settings that change neither a model's weights nor the outcome of its training.
TRAINING_MAY_CHANGE = (
    "train.accumulate",
    "model.remat",
    "train.log_every",
    "train.image_every",
    "train.checkpoint_every",
    "train.keep",
    "train.keep_best",
    *("data.workers", "data.threads", "data.prefetch"),
)
_NOT_WEIGHTS = ("model.dtype", "model.attention", "model.remat")


def require_same_model(saved: Config, config: Config, workdir: str | Path) -> None:
    """Raises InputError if two configs' weights differ, naming the first difference."""
    if difference := _first_difference(
        dataclasses.asdict(saved.model),
        dataclasses.asdict(config.model),
        "model",
        _NOT_WEIGHTS,
    ):
        raise InputError(
            f"the checkpoint in {workdir} does not fit the config: {difference}; use "
            f"--config=saved:{workdir}, the config it was trained with"
        )


def require_same_scale(saved: Config, config: Config, workdir: str | Path) -> None:
    """Raises InputError if the network never saw inputs that are scaled so."""
    then, now = saved.data.normalise, config.data.normalise
    if then != now:
        raise InputError(
            f"the network in {workdir} was trained with data.normalise={then!r}, but "
            f"here data.normalise={now!r}: it has never seen inputs of that scale. Use "
            f"--config=saved:{workdir}, or --config.data.normalise={then}"
        )


def note_changes(
    saved: DataConfig, data: DataConfig, names: Sequence[str], workdir: str | Path
) -> None:
    """Prints which of the named settings a run had otherwise."""
    for name in names:
        then, now = getattr(saved, name), getattr(data, name)
        if then != now:
            print(
                f"note: data.{name} was {then} in {workdir} and is now {now}",
                file=sys.stderr,
            )


def require_finite(params: dict) -> None:
    """Raises InputError if a parameter is not finite, naming the first."""
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        if bad := int(np.sum(~np.isfinite(np.asarray(leaf, np.float32)))):
            name = "/".join(key.key for key in path)
            raise InputError(
                f"{bad} of the {leaf.size} values of {name} are not finite, so the "
                "network cannot reconstruct: its training diverged. Use an earlier "
                "checkpoint"
            )


def require_fit(params: dict, model: nn.Module, batch: Batch, where: Any) -> None:
    """Raises InputError if parameters do not fit a model, naming the first."""
    wanted = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    shapes, found = (
        {
            "/".join(key.key for key in path): tuple(leaf.shape)
            for path, leaf in jax.tree_util.tree_leaves_with_path(tree)
        }
        for tree in (wanted, params)
    )
    for name in sorted(set(shapes) | set(found)):
        if shapes.get(name) != found.get(name):
            raise InputError(
                f"the parameters in {where} do not fit the model: {name} is "
                f"{found.get(name, 'missing')} there, {shapes.get(name, 'unknown')} in "
                "the model"
            )


def require_same_run(
    saved: Config,
    config: Config,
    where: str | Path,
    may_change: tuple[str, ...] = (*TRAINING_MAY_CHANGE, "eval"),
) -> None:
    """Raises InputError if it is another run, naming the first difference.

    Paths are compared by their last names: scans may be moved.
    """
    if difference := _difference(saved, config, may_change):
        raise InputError(
            f"{where}: holds a run with another config: {difference}; choose a new "
            "--workdir, or give the run's own config to resume it"
        )


def require_member(
    saved: Config, first: Config, where: str | Path, beside: str | Path
) -> None:
    """Raises InputError unless two runs differ in nothing but their seed.

    Args:
      saved: config of a run.
      first: config of the first run of an ensemble.
      where: folder of the run.
      beside: folder of the first run.
    """
    may_change = (*TRAINING_MAY_CHANGE, "eval", "train.seed", "data.test")
    if difference := _difference(saved, first, may_change):
        raise InputError(
            f"{where}: cannot be a member of an ensemble with {beside}: {difference}. "
            "Members differ in train.seed alone."
        )


def _difference(
    saved: Config, config: Config, may_change: tuple[str, ...]
) -> str | None:
    """Describes how two configs differ, but for the folders of files."""
    one, other = (dataclasses.asdict(each.by_name()) for each in (saved, config))
    return _first_difference(one, other, "config", may_change)


def _first_difference(
    saved: dict, new: dict, where: str, ignored: tuple[str, ...]
) -> str | None:
    for name, value in saved.items():
        path = name if where == "config" else f"{where}.{name}"
        if path in ignored:
            continue
        if isinstance(value, dict):
            if difference := _first_difference(value, new[name], path, ignored):
                return difference
        elif value != new[name]:
            return f"{path} is {value} there and {new[name]} here"
    return None
