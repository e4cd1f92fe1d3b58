"""The optimiser of a training, and the course of its learning rate."""

import functools

import jax
import optax

from kst_jax.config import TrainConfig
from kst_jax.models.contract import STAGES, Reconstructor
from kst_jax.stages import first_steps


def make_optimizer(
    config: TrainConfig, model: Reconstructor
) -> optax.GradientTransformation:
    """Makes the optimiser with its schedule; parameters join when their stage begins.

    Each group's moment estimates start their bias correction at its first step, as if
    the parameters had not existed before. Otherwise the first updates of a stage would
    be up to six times too large.
    """
    scalings = {
        "adamw": optax.scale_by_adam,
        "rmsprop": functools.partial(  # PyTorch's variant
            optax.scale_by_rms, decay=0.99, eps_in_sqrt=False
        ),
    }

    def group(first: int) -> optax.GradientTransformation:
        update = optax.chain(
            scalings[config.optimizer](), optax.add_decayed_weights(config.weight_decay)
        )
        return optax.transforms.conditionally_mask(update, lambda step: step >= first)

    def labels(params: dict) -> dict:
        return jax.tree_util.tree_map_with_path(
            lambda path, _: model.introduced_in(path), params
        )

    begun = first_steps(config, model.stages)
    groups = {stage: group(begun.get(stage, 0)) for stage in STAGES}
    clip = optax.clip_by_global_norm(config.clip_norm) if config.clip_norm else None
    return optax.chain(
        clip or optax.identity(),
        optax.partition(groups, labels),
        optax.scale_by_learning_rate(_schedule(config)),
    )


def _schedule(config: TrainConfig) -> optax.Schedule:
    rate, steps = config.learning_rate, config.steps - config.warmup_steps
    schedule = {
        "cosine": optax.cosine_decay_schedule(rate, steps),
        "constant": optax.constant_schedule(rate),
        "step": optax.piecewise_constant_schedule(rate, {round(0.8 * steps): 0.1}),
        "halving": optax.exponential_decay(rate, steps / 20, 0.5, staircase=True),
    }[config.schedule]
    if not config.warmup_steps:
        return schedule
    warmup = optax.linear_schedule(0.0, rate, config.warmup_steps)
    return optax.join_schedules([warmup, schedule], [config.warmup_steps])
