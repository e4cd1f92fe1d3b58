"""Which mask a slice gets: fresh ones in training, always the same in evaluation."""

import dataclasses
import functools
import math
import zlib
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats

from kst_jax import masks
from kst_jax.errors import InputError
from kst_jax.mask_config import EXACT_MASKS, FASTMRI_MASKS, MaskConfig
from kst_jax.patches import Layout, samples_lines
from kst_jax.programs.files import encoded

Shape = tuple[int, int]


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


_EXACT = dict(zip(EXACT_MASKS, (masks.gaussian_2d, masks.uniform_1d), strict=True))
_FASTMRI: dict[str, Callable] = dict(
    zip(
        FASTMRI_MASKS,
        (
            masks.fastmri_random,
            masks.fastmri_equispaced,
            masks.fastmri_equispaced_fraction,
        ),
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

    def layout(self, patch: Shape, patterns: Sequence[np.ndarray] = ()) -> Layout:
        """Returns the layout of tokens for masks of this setting.

        Args:
          patch: rows and columns of a patch.
          patterns: masks (H, W); by default any that the setting has.
        """
        counts = [int(mask.sum()) for mask in patterns]
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
            coin = stats.binom(width - low, masks.coin(width, low, acceleration))
            usual.append([low + int(n) for n in coin.interval(0.999)])
            extreme.append([low, low + int(coin.isf(1e-15))])
        else:
            counts = masks.equispaced_counts(config.kind, width, low, acceleration)
            usual.append([min(counts), max(counts)])
    ranges = _around(usual), _around([*usual, *extreme])
    points = ((least * height, most * height) for least, most in ranges)
    return tuple(dict.fromkeys(points))


def _around(ranges: list[list[int]]) -> list[int]:
    """Returns the range that holds all of these."""
    return [min(least for least, _ in ranges), max(most for _, most in ranges)]
