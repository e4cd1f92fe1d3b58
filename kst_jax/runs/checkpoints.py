"""Checkpoints: parameters, training state and config, by Orbax.

workdir/config.json              the run's config, for `configs/saved.py`
workdir/train_subjects.json      people that the model is trained on
workdir/validation_subjects.json people that it is validated on
workdir/training_files.json      sizes and checksums of its scans and masks
workdir/fields_of_view.json      sizes of its images in mm
workdir/maps/                    sensitivity maps, with several coils
workdir/checkpoints/<step>/      params, ema, training, config, metrics, checksums
workdir/checkpoints/<step>.damaged*  set aside when a run resumes from an earlier one
workdir/.lock                    held by the only training that may use the folder

The step alone gives the position in the data. Checkpoints are written while training
continues; a checkpoint is complete once its folder has its final name.
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
from jax.experimental import multihost_utils
from orbax.checkpoint.checkpoint_managers import (
    AnyPreservationPolicy,
    BestN,
    LatestN,
)

from kst_jax import parallel
from kst_jax.config import Config, TrainConfig
from kst_jax.config_dict import from_saved
from kst_jax.errors import InputError
from kst_jax.programs import files
from kst_jax.runs import agreement, integrity, subjects

# Where Orbax keeps the scores of a checkpoint.
_SCORES = Path("metrics") / "metrics"
_MAX_UNSTORED = 2**26  # bytes of parameters that a checkpoint need not store


class Checkpoints:
    """The checkpoints of one run.

    Opening it sets damaged checkpoints aside, under a name that says so.

    Raises:
      InputError: the folder holds a run with another config or only damaged
        checkpoints, cannot be written to, or is in use by another training.
    """

    def __init__(self, workdir: str | Path, config: Config):
        self.workdir = files.local_folder(workdir)
        self._folder = self.workdir / "checkpoints"
        self._config = config
        _require_own_run(self.workdir, config)
        files.make_folder(self.workdir)
        with contextlib.ExitStack() as open_things:
            if parallel.is_first():
                open_things.enter_context(files.alone_in(self.workdir))
            integrity.set_damaged_aside(self._folder)
            _write_config(self.workdir, config)
            self._manager = open_things.enter_context(
                _manager(self.workdir, config.train)
            )
            self._open_things = open_things.pop_all()

    def close(self) -> None:
        """Waits until pending checkpoints are written.

        Raises:
          InputError: a checkpoint could not be written.
        """
        with self._open_things:
            self._wait()

    @property
    def begun(self) -> bool:
        """Returns whether there is a checkpoint to resume from."""
        return self._manager.latest_step() is not None

    def latest(self) -> str:
        """Waits for writing; returns the path of the latest checkpoint, or "none"."""
        self._wait()
        return _latest(self._folder)

    def owed(self) -> dict[str, float] | None:
        """Returns scalars of the latest step if its validation is still due."""
        path = self._folder / str(self._manager.latest_step())
        if not (path / "owed").is_dir() or (path / _SCORES).exists():
            return None
        return _read(path, {"owed": ocp.args.JsonRestore()})["owed"]

    def settle(self, scores: dict[str, float]) -> None:
        """Adds validation scores to the latest checkpoint, which owed them."""
        path = self._folder / str(self._manager.latest_step()) / _SCORES
        if parallel.is_first():
            path.parent.mkdir(exist_ok=True)
            with files.whole(path) as partial:
                partial.write_text(json.dumps(scores))
        multihost_utils.sync_global_devices("scores are written")
        self._manager.reload()

    def save(
        self,
        step: int,
        state: Any,
        scores: dict[str, float],
        owed: dict[str, float] | None = None,
    ) -> None:
        """Starts writing a checkpoint, whole or not at all; deletes those not to keep.

        Args:
          step: number of completed steps.
          state: parameters, moving average and optimiser; its memory may be reused
            afterwards.
          scores: validation scores at this step, if it was validated.
          owed: scalars to log at this step once it has been validated, which a stop
            has put off.

        Raises:
          InputError: this checkpoint, or the one before, cannot be written.
        """
        # Writing continues while the next step reuses the memory of this state.
        state = jax.tree.map(np.array, state)
        items = {
            "params": ocp.args.StandardSave(state.params),
            "training": ocp.args.StandardSave(_training(state)),
            "config": ocp.args.JsonSave(dataclasses.asdict(self._config)),
        }
        if state.ema is not None:
            items["ema"] = ocp.args.StandardSave(state.ema)
        if owed is not None:
            items["owed"] = ocp.args.JsonSave(owed)
        self._wait()
        with _writing(self._folder):
            self._manager.save(
                step, args=ocp.args.Composite(**items), metrics=scores or None
            )

    def restore(self, state: Any) -> Any:
        """Returns the latest state as numpy arrays, or `state` without a checkpoint.

        Raises:
          InputError: the latest checkpoint holds another kind of state.
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
        print(f"Resuming from {_latest(self._folder)}")
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
    except Exception as error:  # Orbax reports full disks and the like at length
        cause = " ".join(f"{type(error).__name__}: {error}".split())[:500]
        raise InputError(
            f"{folder}: a checkpoint cannot be written ({cause}). The last good one is "
            f"{_latest(folder)}; make sure that the disk has space and is writable, "
            "then run the same command again"
        ) from error


def _training(state: Any) -> dict:
    return {"step": state.step, "optimizer": state.optimizer}


def read_parameters(
    workdir: str | Path, which: str = "latest"
) -> tuple[dict, Config, int]:
    """Loads the parameters to evaluate (moving average, if kept), config and step.

    Args:
      workdir: folder of the run.
      which: "latest", or "best" in validation.

    Raises:
      InputError: the folder has no such checkpoint, none that can be read, or one with
        parameters that are not finite.
    """
    folder = files.local_folder(workdir) / "checkpoints"
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
    try:
        agreement.require_finite(found[name])
    except InputError as error:
        raise InputError(f"{path}: {error}") from None
    return jax.device_put(found[name]), from_saved(found["config"]), step


def _read(path: Path, items: dict) -> ocp.args.Composite:
    """Reads items of an undamaged checkpoint."""
    reader = ocp.Checkpointer(ocp.CompositeCheckpointHandler())
    with (
        _unreadable(path),
        contextlib.closing(reader),
        files.plainly_named(path) as plain,
    ):
        return reader.restore(plain, args=ocp.args.Composite(**items))


@contextlib.contextmanager
def _unreadable(path: Path) -> Iterator[None]:
    try:
        yield
    except (ValueError, KeyError, TypeError, FileNotFoundError) as error:
        raise InputError(
            f"{path}: undamaged, but lacks the data to read ({error}). It may come "
            "from another version of kst_jax, or be converted: such parameters can be "
            "evaluated but not trained further"
        ) from error


def _require_plausible(item: Path) -> None:
    """Refuses arrays larger than their files, which Orbax would fill with zeros."""
    # A Checkpointer would warn about a missing file that is not needed.
    handler = ocp.StandardCheckpointHandler()
    with (
        _unreadable(item),
        contextlib.closing(handler),
        files.plainly_named(item) as plain,
    ):
        metadata = handler.metadata(plain)
        if metadata is None:
            raise ValueError("the description of its arrays is missing")
        arrays = jax.tree.leaves(metadata.tree)
        claimed = sum(math.prod(x.shape) * np.dtype(x.dtype).itemsize for x in arrays)
    stored = sum(file.stat().st_size for file in item.rglob("*"))
    if claimed > _MAX_UNSTORED + 100 * stored:
        raise InputError(
            f"{item}: claims parameters of {claimed} bytes, which its {stored} bytes "
            "cannot hold. No training wrote this; copy it again from its source"
        )


def write_parameters(
    workdir: str | Path,
    params: dict,
    config: Config,
    people: Mapping[str, Sequence[str]] | None = None,
) -> None:
    """Writes a checkpoint that can be evaluated but not trained further.

    Args:
      workdir: folder to write; must not hold a run.
      params: the network's parameters.
      config: config of the run that trained them.
      people: part of that run to people it must not be tested on; see
        `kst_jax.runs.subjects`.

    Raises:
      InputError: the folder already holds a run, or cannot be written to.
    """
    workdir = files.local_folder(workdir)
    if _has_checkpoints(workdir):
        raise InputError(f"{workdir}: already holds checkpoints; choose a new folder")
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
        return  # nothing to lose
    saved = read_config(workdir)
    agreement.require_same_run(saved, config, workdir)
    parts = ("train", "test", "validation")
    agreement.note_changes(saved.data, config.data, parts, workdir)


def _has_checkpoints(workdir: Path) -> bool:
    folder = workdir / "checkpoints"
    return folder.is_dir() and bool(integrity.steps_in(folder))


def read_config(workdir: str | Path) -> Config:
    """Reads the config of a run.

    Raises:
      InputError: the folder holds no run, or its config is unreadable.
    """
    path = files.local_folder(workdir) / "config.json"
    try:
        return from_saved(files.read_json(path))
    except FileNotFoundError:
        raise InputError(f"{path}: not found; give the folder of a run") from None
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error})") from error
    except InputError as error:
        raise InputError(f"{path}: {str(error).removeprefix(f'{path}: ')}") from error


def _write_config(workdir: Path, config: Config) -> None:
    """Writes the config, once for all processes."""
    if parallel.is_first():
        with files.whole(workdir / "config.json") as partial:
            partial.write_text(json.dumps(dataclasses.asdict(config), indent=2) + "\n")


@contextlib.contextmanager
def _manager(workdir: Path, config: TrainConfig) -> Iterator[ocp.CheckpointManager]:
    folder = workdir / "checkpoints"

    def note_checksums() -> None:
        """Runs once a checkpoint is written, before its folder gets its final name."""
        if parallel.is_first():
            for temporary in folder.glob("*.orbax-checkpoint-tmp*"):
                integrity.note(temporary)

    best = BestN(
        get_metric_fn=_goodness,
        n=config.keep_best,
        keep_checkpoints_without_metrics=False,
    )
    options = ocp.CheckpointManagerOptions(
        preservation_policy=AnyPreservationPolicy([LatestN(config.keep), best]),
        best_fn=_goodness if config.validate_every else None,
        cleanup_tmp_directories=True,
        async_options=ocp.AsyncOptions(post_finalization_callback=note_checksums),
    )
    with (
        files.plainly_named(workdir) as plain,
        ocp.CheckpointManager(plain / "checkpoints", options=options) as manager,
    ):
        yield manager


def _goodness(scores: dict) -> float:
    """Returns what is highest for the best checkpoint: PSNR, or minus the loss."""
    if "validation_psnr" in scores:
        return scores["validation_psnr"]
    return -scores["validation_loss"]


def _best(folder: Path, steps: list[int]) -> int:
    """Returns the step with the best validation score, the latest if several tie."""
    paths = {step: folder / str(step) / _SCORES for step in steps}
    scores = {
        step: _goodness(files.read_json(path))
        for step, path in paths.items()
        if path.exists()
    }
    if not scores:
        raise InputError(
            f"{folder}: no checkpoint was validated; train with train.validate_every "
            "(and train.keep_best), or use eval.checkpoint=latest"
        )
    return max(scores, key=lambda step: (scores[step], step))
