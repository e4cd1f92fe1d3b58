"""Checkpoints: parameters, training state and config, by Orbax.

workdir/config.json              the run's config, for `configs/saved.py`
workdir/train_subjects.json      whom the model is trained on
workdir/validation_subjects.json whom it is validated on
workdir/checkpoints/<step>/      params, ema, training, config, metrics, checksums
workdir/checkpoints/<step>.damaged*  set aside, when a run carries on from another one
workdir/.lock                    held by the one training that may use the folder

The position in the data is the step. A checkpoint is written while training goes on,
and is complete when its folder has its name.
"""

import contextlib
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import orbax.checkpoint as ocp
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from kst_jax import parallel
from kst_jax.config import Config, TrainConfig
from kst_jax.config_dict import from_dict
from kst_jax.errors import InputError
from kst_jax.programs import files
from kst_jax.runs import agreement, integrity, subjects

_MAX_UNSTORED = 2**26  # bytes of parameters that a checkpoint need not store


class Checkpoints:
    """The checkpoints of one run.

    Damaged ones are set aside, under a name that says so.

    Raises:
      InputError: the folder holds a run with another config, or damaged checkpoints
        alone, or cannot be written to, or another training is using it.
    """

    def __init__(self, workdir: str | Path, config: Config):
        self.workdir = Path(workdir).absolute()
        self._folder = self.workdir / "checkpoints"
        self._config = config
        _require_own_run(self.workdir, config)
        files.make_folder(self.workdir)
        with contextlib.ExitStack() as open_things:
            if parallel.is_first():
                open_things.enter_context(files.alone_in(self.workdir))
            integrity.set_damaged_aside(self._folder)
            _write_config(self.workdir, config)
            self._manager = _manager(self.workdir, config.train)
            open_things.callback(self._manager.close)
            self._open_things = open_things.pop_all()

    def close(self) -> None:
        """Waits for what is being written.

        Raises:
          InputError: it could not be written.
        """
        with self._open_things:
            self._wait()

    @property
    def begun(self) -> bool:
        """Whether there is a checkpoint to carry on from."""
        return self._manager.latest_step() is not None

    def latest(self) -> str:
        """Where the latest checkpoint is, or "none"; waits for it to be written."""
        self._wait()
        return _latest(self._folder)

    def save(self, step: int, state: Any, scores: dict[str, float]) -> None:
        """Begins to write a checkpoint, whole or not at all; drops what is not kept.

        Args:
          step: steps that are over.
          state: parameters, moving average and optimiser; free to be reused after.
          scores: validation's at this step, where there was one.

        Raises:
          InputError: this one, or the one before, cannot be written.
        """
        # Writing goes on while the next step reuses the memory of this state.
        state = jax.tree.map(np.array, state)
        items = {
            "params": ocp.args.StandardSave(state.params),
            "training": ocp.args.StandardSave(_training(state)),
            "config": ocp.args.JsonSave(dataclasses.asdict(self._config)),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(state.ema)
        self._wait()
        with _writing(self._folder):
            self._manager.save(
                step, args=ocp.args.Composite(**items), metrics=scores or None
            )

    def restore(self, state: Any) -> Any:
        """The latest state, as numpy arrays; `state` itself where there is none.

        Raises:
          InputError: the latest checkpoint is not of such a state.
        """
        step = self._manager.latest_step()
        if step is None:
            return state
        wanted = jax.tree.map(np.asarray, state)
        items = {"params": wanted.params, "training": _training(wanted)}
        if state.ema is not None:
            items["ema"] = wanted.ema
        found = _read(
            self._folder / str(step),
            {name: ocp.args.StandardRestore(item) for name, item in items.items()},
        )
        print(f"Carrying on from {_latest(self._folder)}")
        return state.replace(
            params=found["params"], ema=found.get("ema"), **found["training"]
        )

    def _wait(self) -> None:
        with _writing(self._folder):
            self._manager.wait_until_finished()


def _latest(folder: Path) -> str:
    steps = integrity.steps_in(folder)
    return str(folder / str(steps[0])) if steps else "none"


@contextlib.contextmanager
def _writing(folder: Path) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # full disks and the like, in Orbax's many words
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise InputError(
            f"{folder}: a checkpoint cannot be written ({cause}). The last good one is "
            f"{_latest(folder)}; see that the disk has space and can be written, then "
            "give the same command again"
        ) from error


def _training(state: Any) -> dict:
    return {"step": state.step, "optimizer": state.optimizer}


def read_parameters(
    workdir: str | Path, which: str = "latest"
) -> tuple[dict, Config, int]:
    """Parameters to evaluate (their moving average, where kept), config and step.

    Args:
      workdir: folder of the run.
      which: "latest", or "best" in validation.

    Raises:
      InputError: no such checkpoint in the folder, or none that can be read.
    """
    folder = Path(workdir).absolute() / "checkpoints"
    if not folder.is_dir():
        raise InputError(
            f"{workdir}: no checkpoint here; train first (kst-train "
            "--workdir=...), or give the folder of a finished run"
        )
    steps, damaged = integrity.survey(folder)
    if not steps:
        raise InputError(f"{workdir}: training has not written a checkpoint yet")
    step = _best(folder, steps) if which == "best" else steps[0]
    for other, cause in damaged.items():
        integrity.warn(folder / str(other), cause, folder / str(step))
    path = folder / str(step)
    name = "ema" if (path / "ema").is_dir() else "params"
    _require_plausible(path / name)
    found = _read(
        path, {name: ocp.args.StandardRestore(), "config": ocp.args.JsonRestore()}
    )
    return jax.device_put(found[name]), from_dict(found["config"]), step


def _read(path: Path, items: dict) -> ocp.args.Composite:
    """Reads items of an undamaged checkpoint."""
    reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    with _unreadable(path), contextlib.closing(reader):
        return reader.restore(path, args=ocp.args.Composite(**items))


@contextlib.contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise InputError(
            f"{path}: undamaged, but it does not hold what is to be read ({error}). It "
            "may be of another version of kst_jax, or converted: such parameters can "
            "be evaluated, not trained further"
        ) from error


def _require_plausible(item: Path) -> None:
    """Refuses arrays that Orbax would make up: it stores zeros in no space at all."""
    # The handler's own: a Checkpointer warns where a file is missing that none needs.
    handler = ocp.StandardCheckpointHandler()
    with _unreadable(item), contextlib.closing(handler):
        metadata = handler.metadata(item)
        if metadata is None:
            raise ValueError("nothing says what arrays it holds")
        arrays = jax.tree.leaves(metadata.tree)
        claimed = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in arrays)
    stored = sum(file.stat().st_size for file in item.rglob("*"))
    if claimed > _MAX_UNSTORED + 100 * stored:
        raise InputError(
            f"{item}: claims parameters of {claimed} bytes, which {stored} bytes "
            "cannot hold. No training wrote it; restore it from where it comes from"
        )


def write_parameters(
    workdir: str | Path,
    params: dict,
    config: Config,
    people: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes a checkpoint that can be evaluated but not trained further.

    Args:
      workdir: folder to write, without a run in it.
      params: the network's parameters.
      config: the run that made them.
      people: by part of that run whom it may not be tested on; see `kst_jax.subjects`.

    Raises:
      InputError: the folder holds a run already, or cannot be written to.
    """
    workdir = Path(workdir).absolute()
    if _has_checkpoints(workdir):
        raise InputError(f"{workdir}: holds checkpoints already; choose a new folder")
    files.make_folder(workdir)
    _write_config(workdir, config)
    subjects.write(workdir, people or {})
    items = ocp.args.Composite(
        params=ocp.args.StandardSave(jax.tree.map(np.asarray, params)),
        config=ocp.args.JsonSave(dataclasses.asdict(config)),
    )
    with _writing(workdir / "checkpoints"), _manager(workdir, config.train) as manager:
        manager.save(0, args=items)


def _require_own_run(workdir: Path, config: Config) -> None:
    if not _has_checkpoints(workdir):
        return  # nothing would be lost
    agreement.require_same_run(read_config(workdir), config, workdir)


def _has_checkpoints(workdir: Path) -> bool:
    folder = workdir / "checkpoints"
    return folder.is_dir() and bool(integrity.steps_in(folder))


def read_config(workdir: str | Path) -> Config:
    """The config of a run.

    Raises:
      InputError: no run in the folder, or an unreadable config.
    """
    path = Path(workdir) / "config.json"
    try:
        return from_dict(files.read_json(path))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; give the folder of a run") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _write_config(workdir: Path, config: Config) -> None:
    """Once for all processes."""
    if parallel.is_first():
        with files.whole(workdir / "config.json") as partial:
            partial.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


def _manager(workdir: Path, config: TrainConfig) -> ocp.CheckpointManager:
    folder = workdir / "checkpoints"

    def note_checksums() -> None:
        """Runs when all of a checkpoint is written, before its folder gets its name."""
        if parallel.is_first():
            for temporary in folder.glob("*.orbax-checkpoint-tmp*"):
                integrity.note(temporary)

    best = BestN(
        get_metric_fn=_psnr,
        n=config.keep_best,
        keep_checkpoints_without_metrics=False,
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(config.keep), best]),
        best_fn=_psnr if config.validate_every else None,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=note_checksums),
    )
    return ocp.CheckpointManager(folder, options=options)


def _psnr(scores: dict) -> float:
    return scores["validation_psnr"]


def _best(folder: Path, steps: list[int]) -> int:
    """The step with the best score in validation, the latest of equal ones."""
    paths = {step: folder / str(step) / "metrics" / "metrics" for step in steps}
    scores = {
        step: _psnr(files.read_json(path))
        for step, path in paths.items()
        if path.exists()
    }
    if not scores:
        raise InputError(
            f"{folder}: no checkpoint was validated; train with train.validate_every "
            "(and train.keep_best), or take eval.checkpoint=latest"
        )
    return max(scores, key=lambda step: (scores[step], step))
