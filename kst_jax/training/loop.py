"""The training loop: deep supervision and AdamW (paper section 3.2), in stages.

A run depends only on its config and its data; the same command resumes it from the last
checkpoint.
"""

import contextlib
import dataclasses
from collections.abc import Callable
from pathlib import Path

import flax.struct
import grain
import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import Mesh
from tqdm import tqdm

from kst_jax import metrics, parallel
from kst_jax.config import Config, TrainConfig, require_config
from kst_jax.data import opening, pipeline
from kst_jax.errors import DivergedError
from kst_jax.fourier import magnitude
from kst_jax.models.contract import Reconstructor
from kst_jax.models.registry import build
from kst_jax.runs.checkpoints import Checkpoints
from kst_jax.stages import first_steps, stage_at
from kst_jax.tokens import Batch
from kst_jax.training import losses
from kst_jax.training.interruption import Interruption
from kst_jax.training.logs import Logs
from kst_jax.training.optimizers import make_optimizer
from kst_jax.training.scans import open_scans
from kst_jax.training.validation import Validator


@flax.struct.dataclass
class State:
    """Training state: parameters, their moving average (or None), optimiser state."""

    step: jax.Array
    params: dict
    ema: dict | None
    optimizer: optax.OptState


def init_state(
    model: Reconstructor,
    optimizer: optax.GradientTransformation,
    batch: Batch,
    config: TrainConfig,
) -> State:
    """Makes the state before the first step; only the shapes of `batch` matter."""
    params = jax.jit(model.init)(jax.random.key(config.seed), batch)["params"]
    return State(
        step=jnp.zeros((), jnp.int32),
        params=params,
        # A copy, since the step may reuse the memory of either.
        ema=jax.tree.map(jnp.copy, params) if config.ema else None,
        optimizer=optimizer.init(params),
    )


def make_step(
    model: Reconstructor,
    optimizer: optax.GradientTransformation,
    config: TrainConfig,
    stage: str,
    mesh: Mesh,
) -> Callable[[State, Batch], tuple[State, dict, jax.Array]]:
    """Compiles one optimiser step of a stage.

    The step returns the new state, scalars (loss, PSNR of normalised magnitudes where
    there are targets, norms) over the global batch, and each device's first image.
    """

    def loss_of(params: dict, batch: Batch) -> tuple[jax.Array, tuple]:
        output = model.reconstruct(params, batch, stage)
        scalars = {"loss": losses.loss(output, batch, config, stage)}
        if batch.image is not None:
            shown = (batch.in_field(image) for image in (output.image, batch.image))
            scalars["psnr"] = metrics.psnr(*map(magnitude, shown)).mean()
        return scalars["loss"], (scalars, output.image[:1])

    def step(state: State, batch: Batch) -> tuple[State, dict, jax.Array]:
        (scalars, gradient), image = _means(
            loss_of, state.params, batch, config.accumulate
        )
        updates, optimizer_state = optimizer.update(
            gradient, state.optimizer, state.params
        )
        params = optax.apply_updates(state.params, updates)
        ema = None
        if config.ema:
            ema = optax.incremental_update(params, state.ema, 1 - config.ema)
        scalars |= {
            "gradient_norm": optax.tree.norm(gradient),
            "parameter_norm": optax.tree.norm(params),
        }
        return State(state.step + 1, params, ema, optimizer_state), scalars, image

    return parallel.map_over_devices(
        step,
        mesh,
        in_specs=(parallel.REPLICATED, parallel.SHARDED),
        out_specs=(parallel.REPLICATED, parallel.REPLICATED, parallel.SHARDED),
        donate_argnums=0,
    )


def _means(
    loss_of: Callable, params: dict, batch: Batch, micro_batches: int
) -> tuple[tuple[dict, dict], jax.Array]:
    """Averages scalars and gradient over the global batch; adds the first image.

    Each device sums over its micro-batches; devices exchange the sums once.
    """
    gradient_of = jax.value_and_grad(loss_of, has_aux=True)
    params = parallel.each_its_own(params)

    def add(sums: tuple, batch: Batch) -> tuple[tuple, jax.Array]:
        (_, (scalars, image)), gradient = gradient_of(params, batch)
        return jax.tree.map(jnp.add, sums, (scalars, gradient)), image

    zero = parallel.each_its_own(jnp.zeros(()))
    names = ("loss",) if batch.image is None else ("loss", "psnr")
    zeros = dict.fromkeys(names, zero), jax.tree.map(jnp.zeros_like, params)
    batches = jax.tree.map(lambda x: x.reshape(micro_batches, -1, *x.shape[1:]), batch)
    sums, images = jax.lax.scan(add, zeros, batches)
    return parallel.mean(jax.tree.map(lambda x: x / micro_batches, sums)), images[0]


def train(config: Config, workdir: str | Path, maps: Path | None = None) -> State:
    """Trains a model, or resumes an interrupted run.

    SIGTERM and Ctrl-C stop it after the current step and save it.

    Args:
      config: the run.
      workdir: folder for checkpoints and logs.
      maps: folder that keeps the coils' sensitivity maps; by default `maps` in the
        workdir.

    Returns:
      The final state.

    Raises:
      InputError: the data or config is unusable, the folder holds another run, or
        checkpoints cannot be read or written.
      DivergedError: the loss, gradient or parameters are no longer finite.
      SystemExit: with code 0, after SIGTERM.
      KeyboardInterrupt: after Ctrl-C.
    """
    require_config(config)
    at_a_time = config.train.batch_size // config.train.accumulate
    mesh = parallel.make_mesh(at_a_time)
    parallel.warn_of_idle_devices(
        mesh, "train.batch_size / train.accumulate", at_a_time
    )
    # Scans may take long to open: checks that can fail at once come first.
    opening.require_parts(config)
    model = build(config.model, config.data.size)
    optimizer = make_optimizer(config.train, model)
    with contextlib.closing(Checkpoints(workdir, config)) as checkpoints:
        source, validation = open_scans(
            config, workdir, maps, carries_on=checkpoints.begun
        )
        sampler, validator = opening.sampler_of(source, config), None
        if validation:
            masks = opening.sampler_of(validation, config, validation=True)
            validator = Validator(config, validation, masks, model)
        example = pipeline.example_batch(config, sampler)
        with Interruption() as interruption:
            state = init_state(model, optimizer, example, config.train)
            state = parallel.replicate(checkpoints.restore(state), mesh)
            batches = pipeline.training_batches(
                source,
                config,
                sampler,
                jax.process_index(),
                jax.process_count(),
                first_step=int(state.step),
            )
            # Otherwise worker processes may be torn down in the wrong order at exit.
            with contextlib.closing(batches):
                loop = _Loop(
                    *(config, mesh, model, optimizer),
                    *(checkpoints, validator, interruption),
                )
                state = loop.run(state, batches)
            saved = checkpoints.latest() if checkpoints.begun else "the start"
    interruption.obey(f"Stopped. The same command resumes from {saved}")
    return state


@dataclasses.dataclass
class _Loop:
    config: Config
    mesh: Mesh
    model: Reconstructor
    optimizer: optax.GradientTransformation
    checkpoints: Checkpoints
    validator: Validator | None
    interruption: Interruption

    def run(self, state: State, batches: grain.DatasetIterator) -> State:
        """Trains until the last step, or until asked to stop."""
        c = self.config.train
        first, step_of = int(state.step), {}
        begun = first_steps(c, self.model.stages)
        workdir = self.checkpoints.workdir
        with contextlib.closing(Logs(workdir, first)) as logs, self._bar(first) as bar:
            stops = self.interruption.requested() or not self._settled(
                logs, bar, state, begun
            )
            if stops:
                return state
            pending: list[tuple[int, dict]] = []
            for number in range(first + 1, c.steps + 1):
                stage = stage_at(number - 1, begun)
                begins = stage not in step_of
                if begins:
                    bar.set_postfix_str(f"compiling stage {stage}")
                    step_of = {stage: self._step(stage)}
                batch = next(batches)
                state, scalars, images = step_of[stage](
                    state, parallel.shard(batch, self.mesh)
                )
                if pending:  # at most two steps in flight, so that a stop is quick
                    jax.block_until_ready(pending[-1][1])
                pending.append((number, scalars))
                if begins:
                    bar.set_postfix_str(f"stage {stage}")
                bar.update()
                stops = self.interruption.requested()
                if stops or self._logs(number):
                    self._require_finite(pending)
                    pending = []
                    stops |= not self._recorded(
                        logs, bar, number, stage, state, scalars, stops
                    )
                if c.image_every and number % c.image_every == 0:
                    logs.image(number, _panel(batch, images))
                if stops:
                    break
        return state

    def _settled(
        self, logs: Logs, bar: tqdm, state: State, begun: dict[str, int]
    ) -> bool:
        """Makes up for a validation that was stopped; returns whether it is done."""
        owed, number = self.checkpoints.owed(), int(state.step)
        if owed is None:
            return True
        stage = stage_at(number - 1, begun)
        validation = self._validate(number, state, stage)
        if validation is None:
            return False
        self._log(logs, bar, number, owed | validation, stage)
        self.checkpoints.settle(validation)
        return True

    def _recorded(
        self,
        logs: Logs,
        bar: tqdm,
        number: int,
        stage: str,
        state: State,
        scalars: dict,
        stops: bool,
    ) -> bool:
        """Validates, logs and saves as due after a step.

        Stopping leaves no trace in the logs: they read like those of an uninterrupted
        run. A validation that is stopped is saved as owed.

        Returns:
          Whether all of it is done.
        """
        validation: dict[str, float] | None = {}
        if self._validates(number):
            validation = self._validate(number, state, stage)
        if validation is None:
            owed = {name: float(value) for name, value in scalars.items()}
            self.checkpoints.save(number, state, {}, owed)
            return False
        if self._logs(number):
            self._log(logs, bar, number, scalars | validation, stage)
        if stops or self._saves(number):
            self.checkpoints.save(number, state, validation)
        return True

    def _validates(self, number: int) -> bool:
        every = self.config.train.validate_every
        return every > 0 and self._due(number, every)

    def _saves(self, number: int) -> bool:
        every = self.config.train.checkpoint_every
        return self._validates(number) or self._due(number, every)

    def _logs(self, number: int) -> bool:
        return self._saves(number) or number % self.config.train.log_every == 0

    def _due(self, number: int, every: int) -> bool:
        return number % every == 0 or number == self.config.train.steps

    def _validate(
        self, number: int, state: State, stage: str
    ) -> dict[str, float] | None:
        assert self.validator  # exists if `validate_every` is set
        params = state.params if state.ema is None else state.ema
        scores = self.validator(params, stage, self.interruption.requested)
        if scores is not None:
            self._require_finite([(number, scores)])
        return scores

    def _bar(self, first: int) -> tqdm:
        return tqdm(
            desc="Training",
            unit="step",
            total=self.config.train.steps,
            initial=first,
            smoothing=0.05,
        )

    def _step(self, stage: str) -> Callable:
        return make_step(
            self.model, self.optimizer, self.config.train, stage, self.mesh
        )

    def _log(
        self, logs: Logs, bar: tqdm, number: int, scalars: dict, stage: str
    ) -> None:
        values = {name: float(value) for name, value in scalars.items()}
        logs.scalars(number, values | {"stage": stage})
        rate = bar.format_dict["rate"] or 0.0
        psnr = f"PSNR {values['psnr']:.2f} dB, " if "psnr" in values else ""
        bar.set_postfix_str(
            f"{stage} loss {values['loss']:.4f}, {psnr}"
            f"{rate * self.config.train.batch_size:.1f} images/s"
        )

    def _require_finite(self, pending: list[tuple[int, dict]]) -> None:
        """Checks values before each save, so that every checkpoint is finite."""
        for number, scalars in pending:
            for name, value in scalars.items():
                if not np.isfinite(value):
                    raise DivergedError(
                        f"{name.replace('_', ' ')} is {float(value)} at step {number}. "
                        f"The last finite checkpoint is {self.checkpoints.latest()}; "
                        "lower train.learning_rate, set train.clip_norm (say 1.0) or "
                        "train.warmup_steps, and use a new --workdir"
                    )


def _panel(batch: Batch, images: jax.Array) -> np.ndarray:
    """Puts zero-filled, reconstruction and any target side by side, in [0, 1]."""
    first = jax.tree.map(lambda x: x[:1], batch)
    shown = [first.acquisition.adjoint(first.kspace), images.addressable_data(0)]
    if first.image is not None:
        shown.append(first.image)
    panel = np.concatenate([np.asarray(magnitude(x[0])) for x in shown], axis=1)
    return panel / panel.max()
