"""Training stages: low-resolution decoder, k-space, refinement (the authors' code)."""

from kst_jax.config import TrainConfig
from kst_jax.errors import InputError
from kst_jax.models.contract import STAGES


def first_steps(config: TrainConfig, stages: tuple[str, ...]) -> dict[str, int]:
    """Returns the step at which each of the model's stages begins, the first at 0.

    The steps of a stage that the model lacks go to the next stage, or, at the end, to
    the previous one.

    Raises:
      InputError: the last stage gets no steps, so its part would stay untrained.
    """
    first, second = (round(sum(config.stages[:n]) * config.steps) for n in (1, 2))
    begun = dict(zip(STAGES, (0, first, second), strict=True))
    begun = {stage: begun[stage] for stage in stages} | {stages[0]: 0}
    if begun[stages[-1]] >= config.steps:
        raise InputError(
            f"config.train.stages={config.stages} gives stage {stages[-1]} none of the "
            f"{config.steps} steps: give it a larger share, or remove its part from "
            "the model (config.model)"
        )
    return begun


def stage_at(step: int, begun: dict[str, int]) -> str:
    """Returns the stage a step belongs to: the last one that has begun."""
    return [stage for stage, first in begun.items() if first <= step][-1]


def reached(config: TrainConfig, step: int, stages: tuple[str, ...]) -> str:
    """Returns the last stage that the parameters have been trained in after `step`.

    A checkpoint at step 0 was converted or released, so it has passed every stage.
    """
    return stage_at(step - 1, first_steps(config, stages)) if step else stages[-1]


def require_trained(
    config: TrainConfig, step: int, stages: tuple[str, ...], workdir: str
) -> None:
    """Raises InputError if parts of a checkpoint have not been trained yet."""
    stage = reached(config, step, stages)
    if stage != stages[-1]:
        raise InputError(
            f"{workdir}: the checkpoint at step {step} is from training stage {stage}, "
            f"before {stages[-1]}: part of the network is not trained yet. Resume the "
            "run first, or use a later checkpoint."
        )
