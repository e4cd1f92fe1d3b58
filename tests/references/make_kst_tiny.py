"""Writes kst_tiny.npz; run only when the model is meant to change.

python -m tests.references.make_kst_tiny
"""

import functools
import pathlib
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn

from kst_jax import tokens
from kst_jax.config import TrainConfig
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import STAGES, KSpaceTransformer
from kst_jax.training.losses import loss

PATH = pathlib.Path(__file__).parent / "kst_tiny.npz"
CONFIG = KSTConfig(
    width=8,
    heads=2,
    mlp=12,
    encoder_layers=2,
    lr_layers=2,
    hr_layers=2,
    lr_size=(4, 8),
    refinement_features=4,
)


def example() -> tokens.Batch:
    """Two slices of waves with two masks."""
    rows, columns = np.mgrid[:12, :16]
    slices = []
    for phase in (0.3, 1.7):
        wave = np.sin(rows * columns / 9 + phase), np.cos(rows - columns * phase)
        image = np.stack(wave, -1).astype(np.float32)
        mask = (rows * 7 + columns * 5 + int(10 * phase)) % 4 == 0
        slices.append(tokens.tokenise(image, mask) | {"image": image})
    return tokens.batch_of(slices)


def weights(model: nn.Module, *inputs: Any) -> dict:
    """Parameters whose n-th value is a fixed wave of n."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), *inputs)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    waves, start = [], 0
    for leaf in leaves:
        n = np.arange(start, start + leaf.size)
        waves.append((0.4 * np.sin(0.7 * n)).reshape(leaf.shape).astype(np.float32))
        start += leaf.size
    return jax.tree.unflatten(tree, waves)


def outputs() -> dict[str, np.ndarray]:
    """Images of every layer and stage, losses of three steps, gradients' norms."""
    model, batch = KSpaceTransformer(CONFIG), example()
    params = weights(model, batch)
    found = {}
    for stage in STAGES:
        apply = jax.jit(functools.partial(model.apply, stage=stage))
        output = apply({"params": params}, batch)
        images = {**output.supervised, "upsampled": output.upsampled}
        found |= {f"{stage}/{name}": image for name, image in images.items()}

    @jax.jit
    def gradient_of(params: dict) -> tuple[jax.Array, dict]:
        def loss_of(p: dict) -> jax.Array:
            output = model.apply({"params": p}, batch)
            return loss(output, batch, TrainConfig(), "RM")

        return jax.value_and_grad(loss_of)(params)

    optimizer = optax.adamw(5e-4, weight_decay=0.0)
    update = jax.jit(optimizer.update)
    state, losses = optimizer.init(params), []
    for step in range(3):
        value, gradient = gradient_of(params)
        losses.append(value)
        if step == 0:
            norms = [jnp.linalg.norm(g.ravel()) for g in jax.tree.leaves(gradient)]
            found["gradient_norms"] = jnp.stack(norms)
        updates, state = update(gradient, state, params)
        params = optax.apply_updates(params, updates)
    found["losses"] = jnp.stack(losses)
    return {name: np.asarray(value) for name, value in found.items()}


if __name__ == "__main__":
    np.savez(PATH, **outputs())
