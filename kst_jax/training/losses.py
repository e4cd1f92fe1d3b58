"""Deep supervision: the loss of every layer's image (paper section 3.2)."""

import jax
import jax.numpy as jnp
import numpy as np

from kst_jax.config import TrainConfig
from kst_jax.models.contract import Reconstruction
from kst_jax.tokens import Batch

# The Fourier transform is orthonormal, so by Parseval's theorem the squared error of
# the spectra equals that of the images, and using both doubles it.
_DOMAINS = {"image": 1.0, "both": 2.0}


def _squared(images_SxBxHxWx2: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean((images_SxBxHxWx2 - target) ** 2, axis=(2, 3, 4))


def _absolute(images_SxBxHxWx2: jax.Array, target: jax.Array) -> jax.Array:
    return jnp.mean(jnp.abs(images_SxBxHxWx2 - target), axis=(2, 3, 4))


def _relative(images_SxBxHxWx2: jax.Array, target: jax.Array) -> jax.Array:
    # A normalised slice is never zero, but a reconstruction may equal it, and there the
    # norm has no gradient.
    squares = jnp.sum((images_SxBxHxWx2 - target) ** 2, axis=(2, 3, 4))
    return jnp.sqrt(squares + 1e-12) / jnp.linalg.norm(
        target.reshape(*target.shape[:2], -1), axis=-1
    )


# Each returns (S, B), the error by layer and slice.
_ERRORS = {"squared": _squared, "absolute": _absolute, "relative": _relative}


def loss(
    output: Reconstruction, batch: Batch, config: TrainConfig, stage: str
) -> jax.Array:
    """Returns the weighted sum of the layers' errors, a scalar.

    Args:
      output: the model's result; each image in `supervised` is compared with the target
        averaged down to its size. Of images of the target's size, the batch's field
        counts.
      batch: has the target.
      config: kind of error, weights and domain of the loss.
      stage: training stage; the last low-resolution layer's weight depends on it.
    """
    total = jnp.zeros(())
    for name, images in output.supervised.items():
        target = average_pool(batch.target, images.shape[2:4])[None]
        if images.shape[2:4] == batch.grid:
            images, target = batch.in_field(images), batch.in_field(target)
        per_layer_S = _ERRORS[config.error](images, target).mean(axis=1)
        keeps = name != "lr" or stage == "LR" or config.keep_lr_weight
        last = config.last_weight if keeps else config.layer_weight
        total += config.layer_weight * per_layer_S[:-1].sum() + last * per_layer_S[-1]
    return _DOMAINS[config.domain] * total


def average_pool(image_BxHxWx2: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Averages (B, H, W, 2) over equal patches down to (B, *shape, 2).

    Where patches do not end between pixels, the pixels at their edges count as far as
    they lie inside.
    """
    batch, height, width, channels = image_BxHxWx2.shape
    rows, columns = shape
    if height % rows or width % columns:
        down, across = (_areas(height, rows), _areas(width, columns))
        return jnp.einsum("hH,BHWC,wW->BhwC", down, image_BxHxWx2, across)
    patches = image_BxHxWx2.reshape(
        batch, rows, height // rows, columns, width // columns, channels
    )
    return patches.mean(axis=(2, 4))


def _areas(pixels: int, patches: int) -> np.ndarray:
    """Share (patches, pixels) of each patch that lies in each pixel."""
    size = pixels / patches
    start = size * np.arange(patches)[:, None]
    pixel = np.arange(pixels)
    inside = np.minimum(start + size, pixel + 1) - np.maximum(start, pixel)
    return (np.maximum(inside, 0) / size).astype(np.float32)
