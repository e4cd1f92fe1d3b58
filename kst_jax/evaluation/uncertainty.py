"""How well predicted deviations match the errors of magnitudes.

Calibration is conformal (Angelopoulos and Bates, Foundations and Trends in Machine
Learning, 2023, section 2.3.2): errors in units of their deviations are collected over
people who are neither trained nor tested on, and the deviations are scaled by their
90 % quantile. The pixels of a person resemble each other, so the number of people
decides what the coverage is worth; the correction for a finite number of pixels hardly
changes it.

Only the object counts: pixels above a twentieth of the volume's largest target.
"""

import dataclasses
import math
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np

from kst_jax.errors import InputError

LEVEL = 0.9
# Deviations from the middle of that interval to its ends, if errors are normal.
HALF_WIDTH = NormalDist().inv_cdf((1 + LEVEL) / 2)
_OBJECT = 0.05
# Edges between bins: histograms need the same memory for any number of scans.
_RATIOS = np.geomspace(1e-4, 1e4, 16_001)
_DEVIATIONS = np.geomspace(1e-4, 1, 41)
_FEWEST = 100  # pixels in a bin that is drawn


@dataclasses.dataclass
class Uncertainty:
    """Collects errors and deviations, one volume at a time.

    Attributes:
      scale: what the deviations are multiplied by; 1 before calibration.
    """

    scale: float = 1.0

    def __post_init__(self) -> None:
        """Starts with empty histograms."""
        self._ratios: dict[str, np.ndarray] = {}
        self._sums = np.zeros((3, len(_DEVIATIONS) + 1))
        self._people: dict[str, list[dict]] = {}

    def add(
        self,
        person: str,
        image_SxHxW: np.ndarray,
        target: np.ndarray,
        deviation: np.ndarray,
    ) -> dict[str, Any]:
        """Adds a volume, and scores it.

        Args:
          person: whose scan it is.
          image_SxHxW: magnitudes.
          target: magnitudes of the fully sampled slices.
          deviation: predicted standard deviations of `image_SxHxW`.

        Returns:
          pixels: pixels of the object.
          coverage: share of them whose target is within the interval.
          width: mean half-width of the interval, relative to the largest target.
          sparsification: areas under the curve of `area`, by the order of removal:
            "predicted", and "oracle", the best that is possible.
        """
        peak = target.max()
        inside = target > _OBJECT * peak
        error, deviation = np.abs(image_SxHxW - target)[inside], deviation[inside]
        ratio = error / np.maximum(deviation, np.finfo(np.float32).tiny)
        bins = np.searchsorted(_RATIOS, ratio)
        counts = np.bincount(bins, minlength=len(_RATIOS) + 1)
        self._ratios[person] = self._ratios.get(person, 0) + counts
        place = np.searchsorted(_DEVIATIONS, deviation / peak)
        for total, values in zip(
            self._sums,
            (np.ones_like(error), (deviation / peak) ** 2, (error / peak) ** 2),
            strict=True,
        ):
            total += np.bincount(place, values, minlength=len(total))
        scores = {
            "pixels": int(inside.sum()),
            "coverage": float(np.mean(ratio <= HALF_WIDTH)),
            "width": float(HALF_WIDTH * deviation.mean() / peak),
            "sparsification": {
                "predicted": area(error, deviation),
                "oracle": area(error, error),
            },
        }
        self._people.setdefault(person, []).append(scores)
        return scores

    def summary(self) -> dict[str, Any]:
        """Returns means over all volumes and by person, and the scale that calibrates.

        Raises:
          InputError: there are too few pixels to calibrate by.
        """
        everybody = [one for own in self._people.values() for one in own]
        return {
            "interval": LEVEL,
            "scale": self.scale,
            "calibrated_scale": self.calibrated_scale(),
            **_mean(everybody),
            "by_person": {
                person: {
                    **_mean(own),
                    "calibrated_scale": self.calibrated_scale(person),
                }
                for person, own in self._people.items()
            },
        }

    def calibrated_scale(self, person: str | None = None) -> float:
        """Returns the scale at which the intervals hold their share of the errors.

        Args:
          person: whose errors; None for everybody's.

        Raises:
          InputError: there are too few pixels to tell.
        """
        own = self._ratios.values() if person is None else [self._ratios[person]]
        ratios = np.sum(list(own), axis=0)
        count = int(ratios.sum())
        rank = math.ceil((count + 1) * LEVEL)
        if rank > count:
            raise InputError(
                f"the test scans have {count} pixels to calibrate deviations by; give "
                "more scans (data.test)"
            )
        place = int(np.searchsorted(np.cumsum(ratios), rank))
        quantile = _RATIOS[min(place, len(_RATIOS) - 1)]
        return float(self.scale * quantile / HALF_WIDTH)

    def curve(self) -> tuple[np.ndarray, np.ndarray]:
        """Returns root mean squares of deviations and of the errors at their pixels.

        Both are relative to the largest target, in bins of ascending deviations.
        """
        count, deviation, error = self._sums[:, self._sums[0] >= _FEWEST]
        return np.sqrt(deviation / count), np.sqrt(error / count)


def area(error_N: np.ndarray, deviation_N: np.ndarray) -> float:
    """Returns the area under the sparsification curve.

    The curve is the root mean square error of the pixels that are left as the most
    uncertain ones are removed one by one, relative to that of all pixels. Its area is 1
    for deviations without information, and lower for better ones.

    Args:
      error_N: errors.
      deviation_N: predicted deviations, which order the removal.
    """
    squares = error_N.astype(np.float64) ** 2
    # Equal deviations have no order: their errors count as alike.
    _, group, counts = np.unique(deviation_N, return_inverse=True, return_counts=True)
    squares = np.repeat(np.bincount(group, squares) / counts, counts)
    left = np.sqrt(np.cumsum(squares) / np.arange(1, len(squares) + 1))
    return float(left.mean() / left[-1]) if squares.any() else 1.0


def _mean(volumes: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Returns the means of volumes' scores, weighted by their pixels."""
    weights = [volume["pixels"] for volume in volumes]

    def average(*values: float) -> float:
        return float(np.average(values, weights=weights))

    areas = [volume["sparsification"] for volume in volumes]
    return {
        "pixels": sum(weights),
        "coverage": average(*(volume["coverage"] for volume in volumes)),
        "width": average(*(volume["width"] for volume in volumes)),
        "sparsification": {
            order: average(*(each[order] for each in areas)) for order in areas[0]
        },
    }
