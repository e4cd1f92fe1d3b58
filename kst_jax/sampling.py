"""Undersampling masks: which points of k-space are measured (paper section 3.1).

Each pattern is drawn from an explicit generator and has an exact number of points.
fastMRI's are the exception: their count varies from mask to mask, as published.
"""

import dataclasses
import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from kst_jax.config import EXACT_MASKS, FASTMRI_MASKS, MaskConfig
from kst_jax.errors import InputError
from kst_jax.programs.files import encoded

Shape = tuple[int, int]


def gaussian_2d(
    rng: np.random.Generator, shape: Shape, acceleration: float, calibration: int = 0
) -> np.ndarray:
    """Draws points from a normal distribution around the centre.

    Args:
      rng: source of randomness.
      shape: rows and columns (H, W).
      acceleration: H * W over the number of points, which is int(H * W / acceleration).
      calibration: side of a fully sampled central square, included in that number.

    Returns:
      (H, W) bool, True where sampled: distinct points drawn one by one from a normal
      distribution around the centre with standard deviation (H/4, W/4).

    Raises:
      InputError: the budget leaves no point, or fewer points than the centre has.
    """
    rows, columns = (
        -(((np.arange(n) - (n - 1) / 2) / (n / 4)) ** 2) / 2 for n in shape
    )
    log_density = rows[:, None] + columns[None, :]
    centre = np.zeros(shape, bool)
    centre[_centre(shape[0], calibration), _centre(shape[1], calibration)] = True
    count = int(shape[0] * shape[1] / acceleration)
    return _draw(rng, log_density, centre, count, acceleration)


def uniform_1d(
    rng: np.random.Generator, shape: Shape, acceleration: float, calibration: int = 0
) -> np.ndarray:
    """Draws whole columns uniformly.

    Args:
      rng: source of randomness.
      shape: rows and columns (H, W).
      acceleration: W over the number of columns, which is int(W / acceleration).
      calibration: fully sampled centre columns, included in that number.

    Returns:
      (H, W) bool, True where sampled.

    Raises:
      InputError: the budget leaves no column, or fewer columns than the centre has.
    """
    width = shape[1]
    centre = np.zeros(width, bool)
    centre[_centre(width, calibration)] = True
    count = int(width / acceleration)
    return _columns(_draw(rng, np.zeros(width), centre, count, acceleration), shape)


def _draw(
    rng: np.random.Generator,
    log_density: np.ndarray,
    centre: np.ndarray,
    count: int,
    acceleration: float,
) -> np.ndarray:
    """Draws distinct points by density until, with the centre, there are `count`."""
    if count < 1:
        raise InputError(
            f"acceleration {acceleration} leaves none of {centre.size} places to "
            "sample; lower mask.acceleration"
        )
    if count < centre.sum():
        raise InputError(
            f"acceleration {acceleration} leaves {count} of {centre.size} places to "
            f"sample, fewer than the calibration's {centre.sum()}; lower "
            "mask.acceleration or mask.calibration"
        )
    # The largest values of log density + Gumbel noise follow the distribution of draws
    # one by one that skip repetitions.
    score = np.where(centre, np.inf, log_density + rng.gumbel(size=log_density.shape))
    chosen = np.argpartition(-score, count - 1, axis=None)[:count]
    mask = np.zeros(log_density.size, bool)
    mask[chosen] = True
    return mask.reshape(log_density.shape)


def fastmri_random(
    rng: np.random.RandomState,
    shape: Shape,
    accelerations: Sequence[float],
    center_fractions: Sequence[float],
) -> np.ndarray:
    """FastMRI's RandomMaskFunc: a full centre; a coin decides each other column.

    Args:
      rng: legacy generator; in evaluation seeded by `filename_seed`.
      shape: rows and columns (H, W).
      accelerations: values to draw one from.
      center_fractions: fraction of centre columns for each acceleration.

    Returns:
      (H, W) bool, True where sampled.
    """
    acceleration, low, width = _choose(rng, shape, accelerations, center_fractions)
    mask = rng.uniform(size=width) < _coin(width, low, acceleration)
    mask[_centre(width, low)] = True
    return _columns(mask, shape)


def fastmri_equispaced(
    rng: np.random.RandomState,
    shape: Shape,
    accelerations: Sequence[int],
    center_fractions: Sequence[float],
) -> np.ndarray:
    """FastMRI's EquiSpacedMaskFunc: a full centre and every n-th column.

    Arguments and result are those of `fastmri_random`; accelerations are whole numbers.
    """
    acceleration, low, width = _choose(rng, shape, accelerations, center_fractions)
    offset = rng.randint(0, high=round(acceleration))
    mask = np.zeros(width, bool)
    mask[offset :: round(acceleration)] = True
    mask[_centre(width, low)] = True
    return _columns(mask, shape)


def fastmri_equispaced_fraction(
    rng: np.random.RandomState,
    shape: Shape,
    accelerations: Sequence[float],
    center_fractions: Sequence[float],
) -> np.ndarray:
    """FastMRI's EquispacedMaskFractionFunc: spacing widened to keep the acceleration.

    Arguments and result are those of `fastmri_random`.
    """
    acceleration, low, width = _choose(rng, shape, accelerations, center_fractions)
    spacing = _spacing(width, low, acceleration)
    offset = rng.randint(0, high=round(spacing))
    mask = np.zeros(width, bool)
    mask[np.around(np.arange(offset, width - 1, spacing)).astype(int)] = True
    mask[_centre(width, low)] = True
    return _columns(mask, shape)


def slice_rng(file: str, index: int, seed: int, *purpose: int) -> np.random.Generator:
    """The generator for one slice in evaluation, the same in each.

    Args:
      file: name of the scan's file.
      index: number of the slice in it.
      seed: of the evaluation.
      *purpose: a number for draws other than the mask.
    """
    name = zlib.crc32(encoded(file))
    return np.random.default_rng((seed, name, index, *purpose))


def filename_seed(name: str) -> tuple[int, ...]:
    """Returns fastMRI's seed for a file's masks in evaluation, made from its name."""
    return tuple(map(ord, name))


def _choose(
    rng: np.random.RandomState,
    shape: Shape,
    accelerations: Sequence[float],
    center_fractions: Sequence[float],
) -> tuple[float, int, int]:
    choice = rng.randint(len(accelerations))
    low = round(shape[1] * center_fractions[choice])
    return accelerations[choice], low, shape[1]


def _coin(width: int, low: int, acceleration: float) -> float:
    return (width / acceleration - low) / (width - low)


def _spacing(width: int, low: int, acceleration: float) -> float:
    return acceleration * (low - width) / (low * acceleration - width)


def _centre(length: int, count: int) -> slice:
    if count > length:
        raise InputError(
            f"a fully sampled centre of {count} does not fit the {length} rows or "
            "columns of k-space; lower mask.calibration"
        )
    start = (length - count + 1) // 2
    return slice(start, start + count)


def _columns(columns_W: np.ndarray, shape: Shape) -> np.ndarray:
    return np.broadcast_to(columns_W, shape).copy()


_EXACT = dict(zip(EXACT_MASKS, (gaussian_2d, uniform_1d), strict=True))
_FASTMRI: dict[str, Callable] = dict(
    zip(
        FASTMRI_MASKS,
        (fastmri_random, fastmri_equispaced, fastmri_equispaced_fraction),
        strict=True,
    )
)


@dataclasses.dataclass(frozen=True)
class Sampler:
    """Draws the masks of one setting.

    Attributes:
      config: the setting.
      shape: rows and columns (H, W) of the masks.
      bank: masks (M, H, W) to choose from, for kind "bank".
      counts: least and largest number of points that a mask can have.
    """

    config: MaskConfig
    shape: Shape
    bank: np.ndarray | None
    counts: tuple[int, int]

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """Draws a fresh mask (H, W), for training."""
        if self.config.kind in _FASTMRI:
            return self._fastmri(np.random.RandomState(rng.integers(2**32)))
        if self.bank is not None:
            return self.bank[rng.integers(len(self.bank))]
        c = self.config
        return _EXACT[c.kind](rng, self.shape, c.acceleration, c.calibration)

    def fixed(self, file: str, index: int, seed: int) -> np.ndarray:
        """Draws the mask (H, W) of one slice, the same in every evaluation.

        As published, fastMRI's masks depend only on the file's name with its suffix.
        """
        if self.config.kind in _FASTMRI:
            return self._fastmri(np.random.RandomState(filename_seed(file)))
        return self.random(slice_rng(file, index, seed))

    def _fastmri(self, rng: np.random.RandomState) -> np.ndarray:
        c = self.config
        draw = _FASTMRI[c.kind]
        return draw(rng, self.shape, (c.acceleration,), (c.center_fraction,))


def sampler(
    config: MaskConfig, shape: Shape, bank: np.ndarray | None = None
) -> Sampler:
    """Checks a setting and makes its sampler.

    Args:
      config: the setting.
      shape: rows and columns (H, W) of the masks.
      bank: masks (M, H, W) bool, for kind "bank".

    Raises:
      InputError: the setting gives empty masks, or the bank has another size or a mask
        that leaves nothing to reconstruct.
    """
    if bank is not None and bank.shape[1:] != shape:
        raise InputError(
            f"{config.bank}: masks are {bank.shape[1:]} but data.size is {shape}; set "
            "config.data.size to the masks' size"
        )
    if config.kind in _FASTMRI:
        counts = _fastmri_counts(config, shape)
    elif bank is not None:
        sizes = bank.sum(axis=(1, 2))
        if sizes.max() == math.prod(shape):
            raise InputError(
                f"{config.bank}: mask {sizes.argmax()} measures all of k-space and "
                "leaves nothing to reconstruct; remove it"
            )
        counts = (int(sizes.min()), int(sizes.max()))
    else:
        draw = _EXACT[config.kind]
        mask = draw(
            np.random.default_rng(0), shape, config.acceleration, config.calibration
        )
        counts = (int(mask.sum()), int(mask.sum()))
    return Sampler(config, shape, bank, counts)


def _fastmri_counts(config: MaskConfig, shape: Shape) -> tuple[int, int]:
    """Bounds the number of points; a coin's count exceeds them once in 10^15 masks.

    Tokens are padded to the upper bound, so it should stay below all of k-space.
    """
    height, width = shape
    acceleration, low = config.acceleration, round(width * config.center_fraction)
    if low < 1 or low >= width / acceleration:
        raise InputError(
            f"a centre of {low} of {width} columns does not fit an acceleration of "
            f"{acceleration}; change mask.center_fraction or mask.acceleration"
        )
    if config.kind == "fastmri_random":
        coin = stats.binom(width - low, _coin(width, low, acceleration))
        most = low + int(coin.isf(1e-15))
    else:
        spacing = (
            round(acceleration)
            if config.kind == "fastmri_equispaced"
            else _spacing(width, low, acceleration)
        )
        most = min(width, low + math.ceil(width / spacing))
    return low * height, most * height
