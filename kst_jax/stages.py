"""Training stages: low-resolution decoder, k-space, refinement (the authors' code)."""

from kst_jax.config import TrainConfig
from kst_jax.errors import InputError
from kst_jax.models.contract import STAGES


def first_steps(config: TrainConfig, stages: tuple[str, ...]) -> dict[str, int]:
    """The step at which each of the model's stages begins; the first one is 0.

    A stage that the model lacks is left to the one after it, or before it at the end.

    Raises:
      InputError: the last stage has no step, so that its part would stay untrained.
    """
    first, second = (round(sum(config.stages[:n]) * config.steps) for n in (1, 2))
    begun = dict(zip(STAGES, (0, first, second), strict=True))
    begun = {stage: begun[stage] for stage in stages} | {stages[0]: 0}
    if begun[stages[-1]] >= config.steps:
        raise InputError(
            f"config.train.stages={config.stages} leave no step of {config.steps} to "
            f"stage {stages[-1]}: give it a larger share, or leave its part out of the "
            "model (config.model)"
        )
    return begun


def stage_at(step: int, begun: dict[str, int]) -> str:
    """The stage that a step belongs to: the last one that has begun."""
    return [stage for stage, first in begun.items() if first <= step][-1]


def reached(config: TrainConfig, step: int, stages: tuple[str, ...]) -> str:
    """How far the parameters after a number of steps have been trained.

    A checkpoint of step 0 is a converted or released one: of the last stage.
    """
    return stage_at(step - 1, first_steps(config, stages)) if step else stages[-1]


def require_trained(
    config: TrainConfig, step: int, stages: tuple[str, ...], workdir: str
) -> None:
    """Raises InputError for a checkpoint with parts that are not trained yet."""
    stage = reached(config, step, stages)
    if stage != stages[-1]:
        raise InputError(
            f"{workdir}: the checkpoint of step {step} is of training stage {stage}, "
            f"before {stages[-1]}: a part of the network is not trained yet. Carry on "
            "with the run first, or take a later checkpoint."
        )
