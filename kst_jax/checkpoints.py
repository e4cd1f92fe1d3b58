"""Checkpoints: parameters, training state, position in the data and config, by Orbax.

workdir/config.json              the run's config, for `configs/saved.py`
workdir/checkpoints/<step>/      params, ema, training, data, config
"""

import dataclasses
import json
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import orbax.checkpoint as ocp
from flax import linen as nn
from grain.checkpoint import CheckpointRestore, CheckpointSave

from kst_jax.config import Config, from_dict
from kst_jax.errors import InputError
from kst_jax.tokens import Batch

# What a run may change when it carries on, and what does not change a model's weights.
_MAY_CHANGE = (
    "train.log_every",
    "train.image_every",
    "train.checkpoint_every",
    "train.keep",
    *("data.workers", "data.threads", "data.prefetch"),
    "eval",
)
_NOT_WEIGHTS = ("model.dtype", "model.attention")


class Checkpoints:
    """The checkpoints of one run.

    Raises:
      InputError: the folder holds a run with another config.
    """

    def __init__(self, workdir: str | Path, config: Config):
        self.workdir = Path(workdir).absolute()
        self._config = config
        _require_same_run(self.workdir, config)
        self.workdir.mkdir(parents=True, exist_ok=True)
        _write_config(self.workdir, config)
        self._manager = _manager(self.workdir, config.train.keep)

    def close(self) -> None:
        """Waits for what is being written."""
        self._manager.close()

    def latest(self) -> str:
        """Where the latest checkpoint is, or "none"."""
        step = self._manager.latest_step()
        return "none" if step is None else str(self.workdir / "checkpoints" / str(step))

    def save(self, step: int, state: Any, batches: Iterator) -> None:
        """Writes a checkpoint, whole or not at all, and drops the oldest."""
        items = {
            "params": ocp.args.StandardSave(state.params),
            "training": ocp.args.StandardSave(_training(state)),
            "data": CheckpointSave(batches),
            "config": ocp.args.JsonSave(dataclasses.asdict(self._config)),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(state.ema)
        self._manager.save(step, args=ocp.args.Composite(**items))
        self._manager.wait_until_finished()

    def restore(self, state: Any, batches: Iterator) -> Any:
        """The latest state, with `batches` moved to its position; else `state`."""
        step = self._manager.latest_step()
        if step is None:
            return state
        items = {
            "params": ocp.args.StandardRestore(state.params),
            "training": ocp.args.StandardRestore(_training(state)),
            "data": CheckpointRestore(batches),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardRestore(state.ema)
        found = self._manager.restore(step, args=ocp.args.Composite(**items))
        print(f"Carrying on from {self.latest()}")
        return state.replace(
            params=found["params"], ema=found.get("ema"), **found["training"]
        )


def _training(state: Any) -> dict:
    return {"step": state.step, "optimizer": state.optimizer}


def read_parameters(workdir: str | Path) -> tuple[dict, Config, int]:
    """Parameters to evaluate (their moving average, where kept), config and step.

    Raises:
      InputError: no checkpoint in the folder, or one that cannot be read.
    """
    workdir = Path(workdir).absolute()
    if not (workdir / "checkpoints").is_dir():
        raise InputError(
            f"{workdir}: no checkpoint here; train first (python train.py "
            "--workdir=...), or give the folder of a finished run"
        )
    with _manager(workdir) as manager:
        step = manager.latest_step()
        if step is None:
            raise InputError(f"{workdir}: training has not written a checkpoint yet")
        try:
            name = "ema" if _has(manager, step, "ema") else "params"
            found = manager.restore(
                step,
                args=ocp.args.Composite(
                    **{
                        name: ocp.args.StandardRestore(
                            fallback_sharding=_first_device()
                        )
                    },
                    config=ocp.args.JsonRestore(),
                ),
            )
        except (OSError, ValueError, KeyError) as error:
            raise InputError(
                f"{workdir}: checkpoint {step} cannot be read ({error}); delete its "
                "folder to fall back to the one before"
            ) from error
    return found[name], from_dict(found["config"]), step


def write_parameters(workdir: str | Path, params: dict, config: Config) -> None:
    """Writes a checkpoint that can be evaluated but not trained further.

    Raises:
      InputError: the folder holds a run already.
    """
    workdir = Path(workdir).absolute()
    if (workdir / "checkpoints").exists():
        raise InputError(f"{workdir}: holds checkpoints already; choose a new folder")
    workdir.mkdir(parents=True, exist_ok=True)
    _write_config(workdir, config)
    with _manager(workdir) as manager:
        items = ocp.args.Composite(
            params=ocp.args.StandardSave(params),
            config=ocp.args.JsonSave(dataclasses.asdict(config)),
        )
        manager.save(0, args=items)
        manager.wait_until_finished()


def require_same_model(saved: Config, config: Config, workdir: str | Path) -> None:
    """Raises InputError that names the first difference between two models' weights."""
    if difference := _first_difference(
        dataclasses.asdict(saved.model),
        dataclasses.asdict(config.model),
        "model",
        _NOT_WEIGHTS,
    ):
        raise InputError(
            f"the checkpoint in {workdir} does not fit the config: {difference}; use "
            f"--config=configs/saved.py:{workdir} for the config it was made with"
        )


def require_fit(params: dict, model: nn.Module, batch: Batch, where: Any) -> None:
    """Raises InputError that names the first parameter that does not fit a model."""
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


def write_subjects(workdir: str | Path, subjects: Sequence[str]) -> None:
    """Notes whom a model is trained on, so that it is not tested on them."""
    path = Path(workdir) / "train_subjects.json"
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(list(subjects), indent=1) + "\n")
    os.replace(temporary, path)


def read_subjects(workdir: str | Path) -> list[str]:
    """Whom a model was trained on; empty where that is not known."""
    path = Path(workdir) / "train_subjects.json"
    return json.loads(path.read_text()) if path.exists() else []


def _require_same_run(workdir: Path, config: Config) -> None:
    if not (workdir / "config.json").exists():
        return
    if not any((workdir / "checkpoints").glob("[0-9]*")):
        return  # nothing would be lost
    saved = dataclasses.asdict(read_config(workdir))
    if difference := _first_difference(
        saved, dataclasses.asdict(config), "config", _MAY_CHANGE
    ):
        raise InputError(
            f"{workdir}: holds a run with another config: {difference}; choose a new "
            "--workdir, or give the run's own config to carry on with it"
        )


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


def read_config(workdir: str | Path) -> Config:
    """The config of a run.

    Raises:
      InputError: no run in the folder, or an unreadable config.
    """
    path = Path(workdir) / "config.json"
    try:
        return from_dict(json.loads(path.read_text()))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; give the folder of a run") from None
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: cannot be read ({error})") from error


def _write_config(workdir: Path, config: Config) -> None:
    temporary = workdir / "config.json.tmp"
    temporary.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")
    os.replace(temporary, workdir / "config.json")


def _manager(workdir: Path, keep: int | None = None) -> ocp.CheckpointManager:
    options = ocp.CheckpointManagerOptions(
        max_to_keep=keep, enable_async_checkpointing=False
    )
    return ocp.CheckpointManager(workdir / "checkpoints", options=options)


def _has(manager: ocp.CheckpointManager, step: int, name: str) -> bool:
    return (Path(manager.directory) / str(step) / name).is_dir()


def _first_device() -> jax.sharding.Sharding:
    return jax.sharding.SingleDeviceSharding(jax.devices()[0])
