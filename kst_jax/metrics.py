"""Image quality of reconstructions, in two conventions that are never mixed.

* `psnr` and `ssim` are the paper's: one value per slice, relative to the range
  (max - min) of the target's slice.
* `volume_nmse`, `volume_psnr` and `volume_ssim` are fastMRI's: one value per volume,
  relative to the maximum of the target over the whole volume.

All take magnitudes in any unit and compute in float32 under jit. A target without a
range (a constant slice, an all-zero volume) leaves the metric undefined: the result is
NaN, never an invented number, so leave empty slices out of a mean.
"""

import jax
import jax.numpy as jnp
from jax import lax
from jax.typing import ArrayLike

from kst_jax.errors import InputError

_WINDOW = 7
_SAMPLES = _WINDOW**2
_C1 = 0.01**2
_C2 = 0.03**2
_Axis = tuple[int, ...] | None


def psnr(pred_BxHxW: ArrayLike, target_BxHxW: ArrayLike) -> jax.Array:
    """Peak signal-to-noise ratio of each slice (B,) in dB (paper section 3.1).

    The peak is max - min of the target's slice, as in the authors' code. A perfect
    slice scores +inf.

    Raises:
      InputError: the arrays differ in shape or are not three-dimensional.
    """
    pred, target = _pair(pred_BxHxW, target_BxHxW)
    return _psnr(pred, target, _slice_range(target), axis=(1, 2))


def ssim(
    pred_BxHxW: ArrayLike,
    target_BxHxW: ArrayLike,
    data_range_B: jax.Array | None = None,
) -> jax.Array:
    """Structural similarity of each slice (B,) (paper section 3.1).

    Like the authors' code, it follows scikit-image's defaults: 7x7 uniform window, K1
    0.01, K2 0.03, sample covariance, windows inside the image only.

    Args:
      pred_BxHxW: reconstructions.
      target_BxHxW: targets.
      data_range_B: data range of each slice; by default max - min of the target's
        slice, as in the authors' code.

    Raises:
      InputError: the arrays differ in shape, or the images are smaller than the window.
    """
    pred, target = _pair(pred_BxHxW, target_BxHxW)
    if data_range_B is None:
        return _ssim(pred, target, _slice_range(target))
    return _ssim(pred, target, data_range_B[:, None, None])


def volume_nmse(pred_SxHxW: ArrayLike, target_SxHxW: ArrayLike) -> jax.Array:
    """Normalised mean square error |target - pred|^2 / |target|^2 (fastMRI).

    Raises:
      InputError: the arrays differ in shape or are not three-dimensional.
    """
    pred, target = _pair(pred_SxHxW, target_SxHxW)
    unit = _volume_range(target)  # the square of 1e-20 underflows float32
    return _mean_square((target - pred) / unit) / _mean_square(target / unit)


def volume_psnr(pred_SxHxW: ArrayLike, target_SxHxW: ArrayLike) -> jax.Array:
    """Peak signal-to-noise ratio of a volume in dB (fastMRI).

    The mean square error covers all slices; the peak is the maximum of the target. A
    perfect volume scores +inf.

    Raises:
      InputError: the arrays differ in shape or are not three-dimensional.
    """
    pred, target = _pair(pred_SxHxW, target_SxHxW)
    return _psnr(pred, target, _volume_range(target))


def volume_ssim(pred_SxHxW: ArrayLike, target_SxHxW: ArrayLike) -> jax.Array:
    """Structural similarity of a volume (fastMRI).

    The mean of its slices' SSIM, with the maximum of the target over the volume as data
    range.

    Raises:
      InputError: the arrays differ in shape, or the images are smaller than the window.
    """
    pred, target = _pair(pred_SxHxW, target_SxHxW)
    return jnp.mean(_ssim(pred, target, _volume_range(target)))


def _pair(pred: ArrayLike, target: ArrayLike) -> tuple[jax.Array, jax.Array]:
    pred = jnp.asarray(pred, jnp.float32)
    target = jnp.asarray(target, jnp.float32)
    if pred.shape != target.shape or pred.ndim != 3:
        raise InputError(
            f"metrics: a reconstruction of shape {pred.shape} cannot be compared with "
            f"a target of shape {target.shape}. Give both as (slices, height, width)."
        )
    return pred, target


def _slice_range(target: jax.Array) -> jax.Array:
    return _or_nan(jnp.ptp(target, axis=(1, 2), keepdims=True))


def _volume_range(target: jax.Array) -> jax.Array:
    return _or_nan(jnp.max(target, keepdims=True))


def _or_nan(data_range: jax.Array) -> jax.Array:
    return jnp.where(data_range > 0, data_range, jnp.nan)


def _psnr(
    pred: jax.Array, target: jax.Array, data_range: jax.Array, axis: _Axis = None
) -> jax.Array:
    return -10 * jnp.log10(_mean_square((target - pred) / data_range, axis))


def _mean_square(x: jax.Array, axis: _Axis = None) -> jax.Array:
    return jnp.mean(jnp.square(x), axis)


def _ssim(pred: jax.Array, target: jax.Array, data_range: jax.Array) -> jax.Array:
    """Averages the structural similarity of (B, H, W) over windows, to (B,).

    Both factors are written as one minus a difference,
      (2ab + C1) / (a^2 + b^2 + C1) = 1 - (a - b)^2 / (a^2 + b^2 + C1),
    and likewise with cov(a, b) for ab. This is exact for equal images and avoids the
    cancellation that float32 suffers in covariances of nearly equal ones.
    """
    if min(pred.shape[1:]) < _WINDOW:
        raise InputError(
            f"metrics: SSIM uses windows of {_WINDOW}x{_WINDOW} pixels; images of "
            f"{pred.shape[1]}x{pred.shape[2]} are too small. Use larger images."
        )
    pred, target = pred / data_range, target / data_range
    difference = _window_mean(pred - target)
    power = _window_mean(pred) ** 2 + _window_mean(target) ** 2
    variance = _window_variance(pred) + _window_variance(target)
    luminance = 1 - difference**2 / (power + _C1)
    structure = 1 - _window_variance(pred - target) / (variance + _C2)
    return jnp.mean(luminance * structure, axis=(1, 2))


def _window_variance(x: jax.Array) -> jax.Array:
    # E[x^2] - E[x]^2 loses float32 digits with the square of the offset: remove it.
    x = x - jnp.mean(x, axis=(1, 2), keepdims=True)
    unbiased = _SAMPLES / (_SAMPLES - 1)
    return unbiased * (_window_mean(x**2) - _window_mean(x) ** 2)


def _window_mean(x: jax.Array) -> jax.Array:
    """Averages over every window inside the images, columns and rows in turn."""
    for window in ((1, _WINDOW, 1), (1, 1, _WINDOW)):
        x = lax.reduce_window(x, 0.0, lax.add, window, (1, 1, 1), "valid")
    return x / _SAMPLES
