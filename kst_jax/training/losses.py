"""Deep supervision: the loss of every layer's image (paper section 3.2)."""

import jax
import jax.numpy as jnp

from kst_jax import metrics
from kst_jax.config import TrainConfig
from kst_jax.fourier import magnitude
from kst_jax.models.contract import Reconstruction
from kst_jax.tokens import Batch
from kst_jax.training import held_out
from kst_jax.training.averages import average_pool

# The Fourier transform is orthonormal, so by Parseval's theorem the squared error of
# the spectra equals that of the images, and using both doubles it.
_DOMAINS = {"image": 1.0, "both": 2.0}
# Weight of the predicted deviations. The optimisers do not depend on a loss's scale,
# and so small a one hardly changes the norm that `train.clip_norm` clips.
_DEVIATION = 1e-3


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


def _dissimilarity(
    images_SxBxHxWx2: jax.Array, target: jax.Array, peak_B: jax.Array | None
) -> jax.Array:
    """Returns 1 - SSIM (S, B) of the magnitudes; the peak is the data range."""
    S, B, H, W, _ = images_SxBxHxWx2.shape
    wanted_BxHxW = magnitude(target[0])
    if peak_B is None:
        peak_B = wanted_BxHxW.max((1, 2))
    peak_B = jnp.where(peak_B > 0, peak_B, 1)  # of an empty slice or volume
    # The small constant keeps the gradient of the magnitude at zero finite.
    found = jnp.sqrt(jnp.sum(images_SxBxHxWx2**2, -1) + 1e-12).reshape(-1, H, W)
    similarity = metrics.ssim(
        found, jnp.tile(wanted_BxHxW, (S, 1, 1)), jnp.tile(peak_B, S)
    )
    return 1 - similarity.reshape(S, B)


# Each returns (S, B), the error by layer and slice.
_ERRORS = {"squared": _squared, "absolute": _absolute, "relative": _relative}


def loss(
    output: Reconstruction, batch: Batch, config: TrainConfig, stage: str
) -> jax.Array:
    """Returns the weighted sum of the layers' errors, a scalar.

    Args:
      output: the model's result; each image in `supervised` is compared with the target
        averaged down to its size. Of images of the target's size, the batch's field
        counts. With supervision "self" it is compared as `held_out.error` does.
      batch: has the target, and, for 1 - SSIM, the peak of its volume; if that is
        unknown, the target's own maximum is the data range. With supervision "self" it
        has held-out points.
      config: kind of error, weights and domain of the loss.
      stage: training stage; the last low-resolution layer's weight depends on it.

    Raises:
      InputError: images are smaller than SSIM's window of 7x7 pixels.
    """
    total = jnp.zeros(())
    for name, images in output.supervised.items():
        if config.self_supervised:
            error_SxB = held_out.error(images, batch)
        else:
            error_SxB = _DOMAINS[config.domain] * _target_error(images, batch, config)
        per_layer_S = error_SxB.mean(axis=1)
        keeps = name != "lr" or stage == "LR" or config.keep_lr_weight
        last = config.last_weight if keeps else config.layer_weight
        total += config.layer_weight * per_layer_S[:-1].sum() + last * per_layer_S[-1]
    if output.deviation is not None:
        total += _DEVIATION * _negative_log_likelihood(
            output.image, output.deviation, batch
        )
    return total


def _negative_log_likelihood(
    image: jax.Array, deviation_BxHxW: jax.Array, batch: Batch
) -> jax.Array:
    """Returns the mean negative log-likelihood of the magnitude's errors.

    They are taken as normally distributed. Only the deviations have a gradient.
    """
    found, wanted, deviation = (
        batch.in_field(x) for x in (image, batch.target, deviation_BxHxW[..., None])
    )
    error = magnitude(jax.lax.stop_gradient(found)) - magnitude(wanted)
    deviation = deviation[..., 0]
    return jnp.mean(jnp.log(deviation) + (error / deviation) ** 2 / 2)


def _target_error(images: jax.Array, batch: Batch, config: TrainConfig) -> jax.Array:
    """Compares images (S, B, h, w, 2) with the target, averaged down to their size."""
    target = average_pool(batch.target, images.shape[2:4])[None]
    if images.shape[2:4] == batch.grid:
        images, target = batch.in_field(images), batch.in_field(target)
    if config.error == "ssim":
        return _dissimilarity(images, target, batch.peak)
    return _ERRORS[config.error](images, target)
