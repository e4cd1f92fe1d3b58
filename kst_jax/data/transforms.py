"""Turns slices, as read, into the normalised images that networks see.

Runs on the host, in numpy; only `denormalise` may be compiled.
"""

import dataclasses

import jax
import numpy as np
from scipy import ndimage

from kst_jax.data.fourier import fft2c, ifft2c
from kst_jax.data_config import AugmentConfig, DataConfig
from kst_jax.errors import InputError


@dataclasses.dataclass(frozen=True)
class Normalisation:
    """The scaling of a slice: (value - mean) / std on both channels."""

    mean: float
    std: float


def field_of_view(image: np.ndarray, config: DataConfig, where: str) -> np.ndarray:
    """Cuts the configured field of view from the centre of a slice (..., H, W).

    Raises:
      InputError: the slice is smaller and padding is off.
    """
    shape = tuple(c or s for c, s in zip(config.crop, config.size, strict=True))
    size = image.shape[-2:]
    missing = [max(n - m, 0) for n, m in zip(shape, size, strict=True)]
    if any(missing):
        if not config.pad:
            raise InputError(
                f"{where}: image {size} is smaller than the crop {shape}; lower "
                "data.crop (or data.size), or zero-pad it with data.pad=True"
            )
        pads = [(n // 2, n - n // 2) for n in missing]
        image = np.pad(image, [(0, 0)] * (image.ndim - 2) + pads)
    return centre_crop(image, shape)


def centre_crop(x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """Crops the middle of (..., H, W), starting at (H - h) // 2 as fastMRI does."""
    top, left = ((n - m) // 2 for n, m in zip(x.shape[-2:], shape, strict=True))
    return x[..., top : top + shape[0], left : left + shape[1]]


def fourier_resize(
    image: np.ndarray, shape: tuple[int, int], how: str = "symmetric"
) -> np.ndarray:
    """Coarsens an image by cropping its spectrum; field of view and brightness stay.

    Args:
      image: (..., H, W) complex64.
      shape: rows and columns, at most those of the image.
      how: "symmetric", which keeps a real image real, or "plain"; see `DataConfig`.
    """
    if image.shape[-2:] == shape:
        return image
    low = spectrum = fft2c(image)
    for axis, size in zip((-2, -1), shape, strict=True):
        low = _lowest_frequencies(low, axis, size, symmetric=how == "symmetric")
    return ifft2c(low) * np.float32(np.sqrt(low.size / spectrum.size))


def _lowest_frequencies(
    spectrum: np.ndarray, axis: int, size: int, symmetric: bool
) -> np.ndarray:
    """Crops a centred spectrum to its middle `size` frequencies along an axis."""
    spectrum = np.moveaxis(spectrum, axis, 0)
    # The centre of the spectrum is index n // 2, in the old and the new grid.
    start, stop = (n := len(spectrum) // 2 - size // 2), n + size
    low = spectrum[start:stop]
    if symmetric and size % 2 == 0 and size < len(spectrum):
        # An even grid has the frequency -size / 2, but not its partner size / 2.
        both = (spectrum[start] + spectrum[stop]) / 2
        low = np.concatenate([both[None], low[1:]])
    return np.moveaxis(low, 0, axis)


@dataclasses.dataclass(frozen=True)
class Change:
    """A random change to an image, drawn before the image is read.

    Attributes:
      flip_rows: swap top and bottom.
      flip_columns: swap left and right.
      turn: rotation in radians and scaling about the centre; None for neither.
      power: power to which magnitudes are raised; None leaves them alone.
    """

    flip_rows: bool
    flip_columns: bool
    turn: tuple[float, float] | None
    power: float | None

    @property
    def flips(self) -> bool:
        """Whether it flips the image."""
        return self.flip_rows or self.flip_columns


def draw_change(config: AugmentConfig, rng: np.random.Generator) -> Change:
    """Draws flips, rotation, scaling and contrast."""
    flip_rows = config.flip_rows and rng.random() < 0.5
    flip_columns = config.flip_columns and rng.random() < 0.5
    turn = power = None
    if config.rotation or config.scaling:
        angle = np.deg2rad(config.rotation * rng.uniform(-1, 1))
        turn = angle, 1 + config.scaling * rng.uniform(-1, 1)
    if config.intensity:
        power = 1 + config.intensity * rng.uniform(-1, 1)
    return Change(flip_rows, flip_columns, turn, power)


def moves(config: AugmentConfig) -> bool:
    """Whether augmentation changes geometry or contrast."""
    names = ("flip_rows", "flip_columns", "rotation", "scaling", "intensity")
    return any(getattr(config, name) for name in names)


def augment(image: np.ndarray, change: Change) -> np.ndarray:
    """Applies a change to a complex slice (H, W)."""
    image = flip(image, change)
    if change.turn:
        image = _rotate_and_scale(image, *change.turn)
    if change.power is not None:
        image = _change_contrast(image, change.power)
    return np.ascontiguousarray(image)


def flip(image: np.ndarray, change: Change) -> np.ndarray:
    """Flips images (..., H, W)."""
    if change.flip_rows:
        image = image[..., ::-1, :]
    if change.flip_columns:
        image = image[..., ::-1]
    return image


def flip_kspace(points: np.ndarray, change: Change) -> np.ndarray:
    """Moves what belongs to points of k-space (..., H, W) as `flip` moves these points.

    The flipped image has at -k what the image has at k, up to a phase. An even grid has
    the frequency -size / 2 alone, which stays.
    """
    for axis, flips in ((-2, change.flip_rows), (-1, change.flip_columns)):
        if flips:
            size = points.shape[axis]
            opposite = (2 * (size // 2) - np.arange(size)) % size
            points = np.take(points, opposite, axis)
    return points


def _rotate_and_scale(image: np.ndarray, angle: float, scale: float) -> np.ndarray:
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


def simulate_scan(
    image: np.ndarray,
    config: AugmentConfig,
    rng: np.random.Generator,
    sensitivity: np.ndarray | None = None,
) -> np.ndarray:
    """Adds the phase and noise of a measured image to a magnitude image (H, W).

    With the sensitivities of coils (C, H, W), the result is what each of them sees.
    """
    peak = np.abs(image).max()
    if config.phase:
        image = image * np.exp(1j * config.phase * _smooth_phase(image.shape, rng))
    if sensitivity is not None:
        image = sensitivity * image
    if config.noise:
        real, imaginary = rng.normal(scale=config.noise * peak, size=(2, *image.shape))
        image = image + real + 1j * imaginary
    return image.astype(np.complex64)


def _smooth_phase(shape: tuple[int, ...], rng: np.random.Generator) -> np.ndarray:
    """Draws a second-order polynomial plus a few waves, with standard deviation 1."""
    rows, columns = np.meshgrid(*(np.linspace(-1, 1, n) for n in shape), indexing="ij")
    waves = [
        np.cos(np.pi * (down * rows + right * columns) + start)
        for down, right, start in rng.uniform(-1, 1, (4, 3)) * (1.5, 1.5, np.pi)
    ]
    terms = [rows, columns, rows**2, rows * columns, columns**2, *waves]
    phase = np.tensordot(rng.normal(size=len(terms)), np.stack(terms), 1)
    return (phase - phase.mean()) / phase.std()


def normalise(
    image: np.ndarray,
    mask: np.ndarray,
    by: str,
    where: str,
    maps: np.ndarray | None = None,
    kspace: np.ndarray | None = None,
) -> tuple[np.ndarray, np.ndarray, Normalisation]:
    """Scales a complex slice (H, W) and its k-space for networks.

    Args:
      image: fully sampled; (C, H, W) of coils with maps.
      mask: (H, W), True where k-space is sampled.
      by: "measured" or "target"; see `DataConfig.normalise`.
      where: names the slice.
      maps: sensitivity maps (C, H, W) that combine the coils; None for one coil. Only
        for "measured".
      kspace: the image's centred k-space; computed if it is None.

    Returns:
      Image (H, W, 2) and spectrum (H, W, 2) or (C, H, W, 2), float32, and the scaling.

    Raises:
      InputError: the slice has no scale, for example if it is constant, or its values
        are too large or not finite.
    """
    channels = _channels(image)
    if by == "target":
        normalisation = _z_score(channels, where)
        channels = (channels - np.float32(normalisation.mean)) / np.float32(
            normalisation.std
        )
        return channels, _channels(fft2c(_complex(channels))), normalisation
    spectrum = fft2c(image) if kspace is None else kspace
    normalisation = scale_of(_channels(spectrum[..., mask]), mask.size, where)
    scale = np.float32(normalisation.std)
    if maps is not None:
        channels = _channels((maps.conj() * image).sum(axis=0))
    return channels / scale, _channels(spectrum) / scale, normalisation


def scale_of(measured_Nx2: np.ndarray, points: int, where: str) -> Normalisation:
    """Returns the scale that gives the zero-filled image a mean square of 1.

    The mean square covers the real and imaginary values of all pixels; by Parseval it
    follows from the values of k-space. No mean is subtracted, since the scan may not
    have measured it.

    Args:
      measured_Nx2: samples of k-space, real and imaginary parts.
      points: number of points of the grid, H * W.
      where: names the slice.

    Raises:
      InputError: the samples are all zero, or not all finite.
    """
    energy = np.square(measured_Nx2, dtype=np.float64).sum()
    scale = float(np.sqrt(energy / (2 * points)))
    if not (np.isfinite(scale) and np.isfinite(np.float32(scale))):
        raise InputError(
            f"{where}: k-space holds values that are not finite, or too large for "
            "float32; repair the file, or store it in a larger unit"
        )
    if not np.float32(scale) > 0:
        raise InputError(
            f"{where}: every measured value is zero, nothing to reconstruct; leave the "
            "slice out (data.drop_first, data.slices) or repair the file"
        )
    return Normalisation(0.0, scale)


def _z_score(channels_HxWx2: np.ndarray, where: str) -> Normalisation:
    """Returns mean and standard deviation of the real and imaginary values together."""
    peak = np.abs(channels_HxWx2).max()
    if not peak <= np.finfo(np.float32).max / 2:  # else x - mean could overflow
        raise InputError(
            f"{where}: the slice holds values that are not finite, or too large for "
            "float32; repair the file, or store it in a larger unit"
        )
    mean = float(channels_HxWx2.mean(dtype=np.float64))
    # A power of two is exact, and squares near 1 neither overflow nor underflow.
    exponent = int(np.frexp(peak)[1])
    std = float(np.ldexp(channels_HxWx2, -exponent).std()) * 2.0**exponent
    if not np.float32(std) > 0:
        raise InputError(
            f"{where}: every value of the slice is the same, nothing to reconstruct; "
            "leave it out (data.drop_first, data.slices) or repair the file"
        )
    return Normalisation(mean, std)


def _channels(x: np.ndarray) -> np.ndarray:
    """Real and imaginary parts (..., 2), float32; a view of complex64 in order."""
    parts = np.ascontiguousarray(x, np.complex64).view(np.float32)
    return parts.reshape(*x.shape, 2)


def _complex(channels: np.ndarray) -> np.ndarray:
    return channels[..., 0] + 1j * channels[..., 1]


def denormalise(channels: jax.Array, mean: jax.Array, std: jax.Array) -> jax.Array:
    """Inverts `normalise` for slices (B, h, w, 2), given their mean and std (B,)."""
    return channels * std[:, None, None, None] + mean[:, None, None, None]
