"""From a slice as it was read to the normalised image that networks see.

On the host, in numpy; but `denormalise` may be compiled.
"""

import dataclasses

import jax
import numpy as np
from scipy import ndimage

from kst_jax.config import AugmentConfig, DataConfig
from kst_jax.data.fourier import fft2c, ifft2c
from kst_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """What was done to a slice's values: (value - mean) / std on both channels."""

    mean: float
    std: float


def field_of_view(image: np.ndarray, config: DataConfig, where: str) -> np.ndarray:
    """Cuts the configured field of view from the centre of a complex slice (H, W).

    Raises:
      InputError: the slice is smaller and padding is off.
    """
    shape = tuple(c or s for c, s in zip(config.crop, config.size, strict=True))
    missing = [max(n - m, 0) for n, m in zip(shape, image.shape, strict=True)]
    if any(missing):
        if not config.pad:
            raise InputError(
                f"{where}: image {image.shape} is smaller than the crop {shape}; lower "
                "data.crop (or data.size), or zero-pad it with data.pad=True"
            )
        image = np.pad(image, [(n // 2, n - n // 2) for n in missing])
    return centre_crop(image, shape)


def centre_crop(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The middle of (H, W), starting at (H - h) // 2 as fastMRI does."""
    top, left = ((n - m) // 2 for n, m in zip(x.shape, shape, strict=True))
    return x[top : top + shape[0], left : left + shape[1]]


def fourier_resize(image: np.ndarray, shape: tuple[int, int]) -> np.ndarray:
    """A coarser image of the same field of view: the centre of its spectrum.

    Brightness is kept. (H, W) complex64 to `shape`.
    """
    if image.shape == shape:
        return image
    spectrum = fft2c(image)
    # The centre of the spectrum is index n // 2, in the old grid and the new.
    top, left = (n // 2 - m // 2 for n, m in zip(image.shape, shape, strict=True))
    low = spectrum[top : top + shape[0], left : left + shape[1]]
    return ifft2c(low) * np.float32(np.sqrt(low.size / spectrum.size))


def augment(
    image: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    """Random flips, rotation, scaling and contrast of a complex slice (H, W)."""
    if config.flip_rows and rng.random() < 0.5:
        image = image[::-1]
    if config.flip_columns and rng.random() < 0.5:
        image = image[:, ::-1]
    if config.rotation or config.scaling:
        image = _rotate_and_scale(image, config, rng)
    if config.intensity:
        image = _change_contrast(image, 1 + config.intensity * rng.uniform(-1, 1))
    return np.ascontiguousarray(image)


def _rotate_and_scale(
    image: np.ndarray, config: AugmentConfig, rng: np.random.Generator
) -> np.ndarray:
    angle = np.deg2rad(config.rotation * rng.uniform(-1, 1))
    scale = 1 + config.scaling * rng.uniform(-1, 1)
    cosine, sine = np.cos(angle), np.sin(angle)
    # Maps output to input coordinates, about the centre.
    matrix = np.array([[cosine, sine], [-sine, cosine]]) / scale
    centre = (np.array(image.shape) - 1) / 2
    offset = centre - matrix @ centre
    if not image.imag.any():  # a magnitude: half the work
        real = ndimage.affine_transform(image.real, matrix, offset, order=1)
        return real.astype(np.complex64)
    return ndimage.affine_transform(image, matrix, offset, order=1)


def _change_contrast(image: np.ndarray, power: float) -> np.ndarray:
    magnitude = np.abs(image)
    peak = magnitude.max()
    if peak == 0:
        return image
    change = (np.maximum(magnitude, 1e-6 * peak) / peak) ** (power - 1)
    return (image * change).astype(np.complex64)


def normalise(image: np.ndarray, where: str) -> tuple[np.ndarray, Normalisation]:
    """Z-score of a complex slice, real and imaginary values taken together.

    Returns:
      (H, W, 2) float32 with mean 0 and standard deviation 1, and what was done.

    Raises:
      InputError: a constant slice, such as an all-zero one, or values whose squares
        are beyond float32.
    """
    channels = np.stack([image.real, image.imag], axis=-1).astype(np.float32)
    with np.errstate(over="ignore", invalid="ignore"):  # overflow is reported below
        mean, std = float(channels.mean(dtype=np.float64)), float(channels.std())
    if not np.isfinite(std):
        raise InputError(
            f"{where}: the values of the slice are too large for their squares to be "
            "float32 numbers; store them in a larger unit"
        )
    if not std > 0:
        raise InputError(
            f"{where}: every value of the slice is the same, nothing to reconstruct; "
            "leave it out (data.drop_first, data.slices) or repair the file"
        )
    return (channels - np.float32(mean)) / np.float32(std), Normalisation(mean, std)


def denormalise(channels: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Inverse of `normalise`: slices (B, h, w, 2), mean and std of each (B,)."""
    return channels * std[:, None, None, None] + mean[:, None, None, None]
