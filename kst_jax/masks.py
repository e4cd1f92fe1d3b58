"""Undersampling masks: which points of k-space are measured (paper section 3.1).

Each pattern is drawn from an explicit generator and has an exact number of points.
fastMRI's are the exception: their count varies from mask to mask, as published.
"""

from collections.abc import Sequence

import numpy as np

from kst_jax.errors import InputError

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
    mask = rng.uniform(size=width) < coin(width, low, acceleration)
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


def _choose(
    rng: np.random.RandomState,
    shape: Shape,
    accelerations: Sequence[float],
    center_fractions: Sequence[float],
) -> tuple[float, int, int]:
    choice = rng.randint(len(accelerations))
    low = round(shape[1] * center_fractions[choice])
    return accelerations[choice], low, shape[1]


def coin(width: int, low: int, acceleration: float) -> float:
    """Returns how likely fastMRI's random mask has a column outside its centre."""
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


def equispaced_counts(
    kind: str, width: int, low: int, acceleration: float
) -> list[int]:
    """Counts the columns of the equispaced masks with each possible offset."""
    centre = np.zeros(width, bool)
    centre[middle(width, low)] = True
    return [
        int((centre | _comb(kind, width, low, acceleration, offset)).sum())
        for offset in range(_offsets(kind, width, low, acceleration))
    ]
