"""Splits of a slice's measured points, for training without targets.

At each visit of a slice, the network sees one part of what was measured and is compared
with the other, in k-space: self-supervision via data undersampling (Yaman et al., MRM
2020). Errors may be divided by the probability that a point is held out; their expected
square is then that over all points (Millard and Chiew 2023).

Places are whole columns where masks sample whole columns, else points.
"""

import dataclasses
import functools

import numpy as np

from kst_jax.config import Config
from kst_jax.errors import InputError
from kst_jax.masks import draw_scores, gaussian_log_density, middle
from kst_jax.patches import Layout
from kst_jax.patterns import Patterns
from kst_jax.sampling import Sampler

Shape = tuple[int, ...]

# Purpose of a slice's own generator (`sampling.slice_rng`) that splits its points.
SPLIT = 3
# Columns, or rows and columns of points, in the middle that the network always sees.
_LINES, _POINTS = 2, 4
# Masks whose splits tell how likely it is that a place is held out: so many, but with
# no more places in all than the second number.
_MASKS, _PLACES = 4000, 2**26


@dataclasses.dataclass(frozen=True, eq=False)
class Splitter:
    """Splits the measured places of masks of a shape.

    Attributes:
      share: of the places outside the centre, to hold out (`train.held_out`).
      shape: rows and columns (H, W) of the masks.
      lines: whether places are whole columns.
      weights: (H, W) weight of errors at held-out points; None stands for 1.
    """

    share: float
    shape: tuple[int, int]
    lines: bool
    weights: np.ndarray | None = None

    def held_out(self, places: int) -> int:
        """Returns how many of so many measured places are held out.

        It depends on nothing else, so that tokens have static shapes: the centre counts
        as measured, whatever the mask has of it.
        """
        return round(self.share * max(places - self.centre.sum(), 0))

    def seen(self, points: int) -> int:
        """Returns how many of so many measured points the network sees."""
        each = self.shape[0] if self.lines else 1
        places = points // each
        return (places - self.held_out(places)) * each

    def layout(self, whole: Layout) -> Layout:
        """Returns the layout of what is seen of masks that have this layout."""
        return dataclasses.replace(
            whole, least=self.seen(whole.least), most=self.seen(whole.most)
        )

    @property
    def centre(self) -> np.ndarray:
        """The places, (1, W) or (H, W), that are always seen."""
        size, count = self.shape, _POINTS
        if self.lines:
            size, count = (1, self.shape[1]), _LINES
        centre = np.zeros(size, bool)
        centre[tuple(middle(n, min(n, count)) for n in size)] = True
        return centre

    def split(
        self, rng: np.random.Generator, mask: np.ndarray
    ) -> tuple[np.ndarray, np.ndarray]:
        """Draws a split of a mask.

        Args:
          rng: source of randomness.
          mask: (H, W), True where sampled.

        Returns:
          What the network sees (H, W), bool, and the weights (H, W) of the errors at
          what is held out, float32, zero at other points.
        """
        candidates, count = self.candidates(mask)
        scores = np.where(candidates, draw_scores(rng, self.log_density), -np.inf)
        chosen = np.zeros(scores.size, bool)
        chosen[np.argsort(-scores, axis=None)[:count]] = True
        held_out = np.broadcast_to(chosen.reshape(scores.shape), self.shape)
        weights = 1.0 if self.weights is None else self.weights
        return mask & ~held_out, np.where(held_out, weights, 0).astype(np.float32)

    def candidates(self, mask: np.ndarray) -> tuple[np.ndarray, int]:
        """Returns places (1, W) or (H, W) to draw from, and how many to draw."""
        measured = mask[:1] if self.lines else mask
        return measured & ~self.centre, self.held_out(int(measured.sum()))

    @property
    def log_density(self) -> np.ndarray:
        """The logarithm of the density of draws, (1, W) or (H, W)."""
        rows, columns = map(gaussian_log_density, self.shape)
        return columns[None] if self.lines else np.add.outer(rows, columns)

    def require_parts(self, least: int) -> None:
        """Raises InputError if a mask of so few points leaves nothing to compare."""
        if self.seen(least) < least:
            return
        places = f"{least} points"
        if self.lines:
            places = f"{least // self.shape[0]} columns"
        raise InputError(
            f"config.train.held_out={self.share} holds out none of the {places} that a "
            f"mask may have, since {self.centre.sum()} in the centre are always seen; "
            "raise it, or lower config.mask.acceleration"
        )


def splitter_of(config: Config, sampler: Patterns) -> Splitter | None:
    """Returns a run's splitter for the masks of a sampler; None with targets.

    Raises:
      InputError: splits of these masks leave nothing to compare.
    """
    train = config.train
    if not train.self_supervised:
        return None
    assert isinstance(sampler, Sampler)
    splitter = Splitter(train.held_out, sampler.shape, sampler.lines)
    splitter.require_parts(sampler.buckets[0][0])
    if train.weighted:
        return dataclasses.replace(splitter, weights=_weights(train.held_out, sampler))
    return splitter


@functools.cache
def _weights(share: float, sampler: Sampler) -> np.ndarray:
    """Returns 1 / probability of being held out (H, W); zero where that is zero."""
    splitter = Splitter(share, sampler.shape, sampler.lines)
    probability = held_out_probability(splitter, sampler)
    nowhere = np.zeros(sampler.shape)
    return np.divide(1, probability, out=nowhere, where=probability > 0)


def compared(kspace: np.ndarray, held_out: np.ndarray) -> dict[str, np.ndarray]:
    """Returns the fields of `tokens.Batch` that a network is compared with.

    Args:
      kspace: (H, W, 2), or (C, H, W, 2) of several coils.
      held_out: (H, W) weights of the errors at held-out points; zero at other points.
    """
    measured = np.where(held_out[..., None] > 0, kspace, 0)
    return {"held_out": held_out, "held_kspace": measured}


def held_out_probability(splitter: Splitter, sampler: Sampler) -> np.ndarray:
    """Estimates how likely it is, over masks and splits, that points are held out.

    A mask that holds a place adds the probability that the place is then held out,
    given the other places' draws, instead of whether it is. This has the same mean and
    scatters less.

    Args:
      splitter: draws the splits.
      sampler: draws the masks.

    Returns:
      (H, W), zero where no mask of many has a point that may be held out.
    """
    rng = np.random.default_rng(0)
    density = np.exp(splitter.log_density)
    total = np.zeros(density.shape)
    count = min(_MASKS, max(1, _PLACES // density.size))
    for _ in range(count):
        candidates, held_out = splitter.candidates(sampler.random(rng))
        total += _inclusion(rng, candidates, held_out, density)
    return np.broadcast_to(total / count, sampler.shape)


def _inclusion(
    rng: np.random.Generator, candidates: np.ndarray, count: int, density: np.ndarray
) -> np.ndarray:
    """Returns the probabilities of being drawn, each given the others' draws.

    Draws by density one by one are the first `count` arrivals, where a place arrives
    after an exponential time of that rate. It is among them if it arrives before the
    last of the `count` arrivals without it.
    """
    probability = np.zeros(density.shape)
    rate = density[candidates]
    if count == 0:
        return probability
    if count == len(rate):
        probability[candidates] = 1
        return probability
    arrival = rng.exponential(size=len(rate)) / rate
    last, next_one = np.partition(arrival, (count - 1, count))[count - 1 : count + 1]
    limit = np.where(arrival <= last, next_one, last)
    probability[candidates] = -np.expm1(-rate * limit)
    return probability
