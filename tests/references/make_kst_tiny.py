"""Writes kst_tiny.npz; run only when the model is meant to change.

python -m tests.references.make_kst_tiny
"""

import pathlib

import jax
import numpy as np

from kst_jax import tokens
from kst_jax.models.kst import KSpaceTransformer, KSTConfig

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


def weights(model: KSpaceTransformer, batch: tokens.Batch) -> dict:
    """Parameters whose n-th value is a fixed wave of n."""
    shapes = jax.eval_shape(model.init, jax.random.key(0), batch)["params"]
    leaves, tree = jax.tree.flatten(shapes)
    waves, start = [], 0
    for leaf in leaves:
        n = np.arange(start, start + leaf.size)
        waves.append((0.4 * np.sin(0.7 * n)).reshape(leaf.shape).astype(np.float32))
        start += leaf.size
    return jax.tree.unflatten(tree, waves)


def outputs() -> dict[str, np.ndarray]:
    """Images of every layer."""
    model, batch = KSpaceTransformer(CONFIG), example()
    output = jax.jit(model.apply)({"params": weights(model, batch)}, batch)
    images = {**output.supervised, "upsampled": output.upsampled}
    return {name: np.asarray(image) for name, image in images.items()}


if __name__ == "__main__":
    np.savez(PATH, **outputs())
