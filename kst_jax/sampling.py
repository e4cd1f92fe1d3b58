"""Undersampling masks: which points of k-space are measured (paper section 3.1).

Each pattern is drawn from an explicit generator and has an exact number of points.
fastMRI's are the exception: their count varies from mask to mask, as published.
"""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from kst_jax.config import EXACT_MASKS, FASTMRI_MASKS, MaskConfig
from kst_jax.errors import InputError
from kst_jax.patches import Layout, samples_lines
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
    log_density = np.add.outer(*map(gaussian_log_density, shape))
    centre = np.zeros(shape, bool)
    centre[middle(shape[0], calibration), middle(shape[1], calibration)] = True
    count = int(shape[0] * shape[1] / acceleration)
    return _draw(rng, log_density, centre, count, acceleration)


def gaussian_log_density(size: int) -> np.ndarray:
    """Returns the logarithm of a density along an axis (size,), about its middle.

    It is normal, with a standard deviation of a quarter of the axis.
    """
    return -(((np.arange(size) - (size - 1) / 2) / (size / 4)) ** 2) / 2


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
    centre[middle(width, calibration)] = True
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
    score = np.where(centre, np.inf, draw_scores(rng, log_density))
    chosen = np.argpartition(-score, count - 1, axis=None)[:count]
    mask = np.zeros(log_density.size, bool)
    mask[chosen] = True
    return mask.reshape(log_density.shape)


def draw_scores(rng: np.random.Generator, log_density: np.ndarray) -> np.ndarray:
    """Draws a score for each place: log density + Gumbel noise.

    Places with the highest scores follow the distribution of draws one by one that skip
    repetitions.
    """
    return log_density + rng.gumbel(size=log_density.shape)


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
    mask[middle(width, low)] = True
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
    return _equispaced(
        "fastmri_equispaced", rng, shape, accelerations, center_fractions
    )


def fastmri_equispaced_fraction(
    rng: np.random.RandomState,
    shape: Shape,
    accelerations: Sequence[float],
    center_fractions: Sequence[float],
) -> np.ndarray:
    """FastMRI's EquispacedMaskFractionFunc: spacing widened to keep the acceleration.

    Arguments and result are those of `fastmri_random`.
    """
    return _equispaced(
        "fastmri_equispaced_fraction", rng, shape, accelerations, center_fractions
    )


def _equispaced(
    kind: str,
    rng: np.random.RandomState,
    shape: Shape,
    accelerations: Sequence[float],
    center_fractions: Sequence[float],
) -> np.ndarray:
    acceleration, low, width = _choose(rng, shape, accelerations, center_fractions)
    offset = rng.randint(0, high=_offsets(kind, width, low, acceleration))
    mask = _comb(kind, width, low, acceleration, offset)
    mask[middle(width, low)] = True
    return _columns(mask, shape)


def _offsets(kind: str, width: int, low: int, acceleration: float) -> int:
    """Returns the number of offsets that a comb may have."""
    if kind == "fastmri_equispaced":
        return round(acceleration)
    return round(_spacing(width, low, acceleration))


def _comb(
    kind: str, width: int, low: int, acceleration: float, offset: int
) -> np.ndarray:
    """Returns the equally spaced columns (W,), without the centre."""
    mask = np.zeros(width, bool)
    if kind == "fastmri_equispaced":
        mask[offset :: round(acceleration)] = True
    else:
        spacing = _spacing(width, low, acceleration)
        mask[np.around(np.arange(offset, width - 1, spacing)).astype(int)] = True
    return mask


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


def middle(length: int, count: int) -> slice:
    """Returns the `count` places in the middle of an axis.

    Raises:
      InputError: the axis is shorter.
    """
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
      buckets: ranges of the number of points, from narrow to wide; the last one holds
        all masks. A program is compiled for a range, and its cost depends on the range.
      lines: whether every mask samples whole columns.
    """

    config: MaskConfig
    shape: Shape
    bank: np.ndarray | None
    buckets: tuple[tuple[int, int], ...]
    lines: bool

    @property
    def counts(self) -> tuple[int, int]:
        """Least and largest number of points that a mask can have."""
        return self.buckets[-1]

    def layout(self, patch: Shape, counts: Sequence[int] = ()) -> Layout:
        """Returns the layout of tokens for masks with these numbers of points.

        Args:
          patch: rows and columns of a patch.
          counts: numbers of points; by default any that a mask can have.
        """
        least, most = self.bucket(counts) if counts else self.counts
        return Layout(least, most, self.lines, patch)

    def at(self, shape: Shape) -> "Sampler":
        """Returns the same setting's sampler for masks of another shape.

        Raises:
          InputError: the setting has no masks of that shape.
        """
        return self if shape == self.shape else _sampler_at(self.config, shape)

    def bucket(self, counts: Sequence[int]) -> tuple[int, int]:
        """Returns the cheapest bucket for masks with these numbers of points."""
        least, most = min(counts), max(counts)
        fitting = (b for b in self.buckets if b[0] <= least and most <= b[1])
        return next(fitting, self.counts)

    def random(self, rng: np.random.Generator) -> np.ndarray:
        """Draws a fresh mask (H, W), for training."""
        if self.config.kind in _FASTMRI:
            return self._fastmri(np.random.RandomState(rng.integers(2**32)))
        if self.bank is not None:
            return self.bank[rng.integers(len(self.bank))]
        (acceleration,) = self.config.accelerations
        draw = _EXACT[self.config.kind]
        return draw(rng, self.shape, acceleration, self.config.calibration)

    def fixed(self, file: str, index: int, seed: int) -> np.ndarray:
        """Draws the mask (H, W) of one slice, the same in every evaluation.

        As published, fastMRI's masks depend only on the file's name with its suffix.
        """
        if self.config.kind in _FASTMRI:
            return self._fastmri(np.random.RandomState(filename_seed(file)))
        return self.random(slice_rng(file, index, seed))

    def fixed_acceleration(self, file: str) -> float | None:
        """Returns the acceleration of a file's `fixed` masks; None for a bank."""
        if self.bank is not None:
            return None
        accelerations = self.config.accelerations
        rng = np.random.RandomState(filename_seed(file))
        return accelerations[rng.randint(len(accelerations))]

    def _fastmri(self, rng: np.random.RandomState) -> np.ndarray:
        c = self.config
        draw = _FASTMRI[c.kind]
        return draw(rng, self.shape, c.accelerations, c.center_fractions)


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
        return Sampler(config, shape, None, _fastmri_buckets(config, shape), lines=True)
    if bank is not None:
        sizes = bank.sum(axis=(1, 2))
        if sizes.max() == math.prod(shape):
            raise InputError(
                f"{config.bank}: mask {sizes.argmax()} measures all of k-space and "
                "leaves nothing to reconstruct; remove it"
            )
        counts = int(sizes.min()), int(sizes.max())
        return Sampler(config, shape, bank, (counts,), all(map(samples_lines, bank)))
    lines = config.kind == "uniform_1d"
    mask = Sampler(config, shape, None, (), lines).random(np.random.default_rng(0))
    return Sampler(config, shape, None, ((int(mask.sum()),) * 2,), lines)


@functools.cache
def _sampler_at(config: MaskConfig, shape: Shape) -> Sampler:
    if config.kind == "bank":
        raise InputError(
            f"{config.bank}: its masks do not fit k-space of {shape[0]} x {shape[1]}"
        )
    return sampler(config, shape)


def _fastmri_buckets(config: MaskConfig, shape: Shape) -> tuple[tuple[int, int], ...]:
    """Returns the ranges of the number of points: usual ones, then all.

    Tokens are padded to the upper bound of a range. The number of columns that a coin
    chooses has unlikely extremes: of 368 columns at 4x it may be 154, but is seldom
    above 115. A coin's count exceeds the last range once in 10^15 masks.
    """
    height, width = shape
    usual, extreme = [], []
    for acceleration, fraction in zip(
        config.accelerations, config.center_fractions, strict=True
    ):
        low = round(width * fraction)
        if low < 1 or low >= width / acceleration:
            raise InputError(
                f"a centre of {low} of {width} columns does not fit an acceleration of "
                f"{acceleration}; change mask.center_fraction or mask.acceleration"
            )
        if config.kind == "fastmri_random":
            coin = stats.binom(width - low, _coin(width, low, acceleration))
            usual.append([low + int(n) for n in coin.interval(0.999)])
            extreme.append([low, low + int(coin.isf(1e-15))])
        else:
            counts = _equispaced_counts(config.kind, width, low, acceleration)
            usual.append([min(counts), max(counts)])
    ranges = _around(usual), _around([*usual, *extreme])
    points = ((least * height, most * height) for least, most in ranges)
    return tuple(dict.fromkeys(points))


def _around(ranges: list[list[int]]) -> list[int]:
    """Returns the range that holds all of these."""
    return [min(least for least, _ in ranges), max(most for _, most in ranges)]


def _equispaced_counts(
    kind: str, width: int, low: int, acceleration: float
) -> list[int]:
    """Counts the columns of the equispaced masks with each possible offset."""
    centre = np.zeros(width, bool)
    centre[middle(width, low)] = True
    return [
        int((centre | _comb(kind, width, low, acceleration, offset)).sum())
        for offset in range(_offsets(kind, width, low, acceleration))
    ]
