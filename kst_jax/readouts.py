"""Readouts off the grid as tokens.

A token is V neighbouring samples of a readout, where V is the number of points of a
patch (`kst_jax.patches`): of a spoke, for example. Every point of the grid is a query.
"""

import dataclasses
import math

import numpy as np

from kst_jax import patches
from kst_jax.errors import InputError
from kst_jax.trajectories import Trajectory

Shape = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class ReadoutLayout:
    """How many tokens and queries the trajectories of a setting need.

    Attributes:
      readouts: of each trajectory.
      samples: of each readout.
      patch: rows and columns of a patch.
    """

    readouts: int
    samples: int
    patch: Shape

    @property
    def middle(self) -> "ReadoutLayout":
        """The same layout: trajectories of a setting all have as many samples."""
        return self

    def tokens(self, shape: Shape) -> int:
        """Returns the number of tokens, for images of any shape."""
        del shape
        return self.readouts * -(-self.samples // math.prod(self.patch))

    def queries(self, shape: Shape) -> int:
        """Returns the number of queries for images of a shape (H, W)."""
        return math.prod(patches.grid_of(shape, self.patch))


def tokenise(
    samples: np.ndarray, trajectory: Trajectory, shape: Shape, patch: Shape
) -> dict[str, np.ndarray]:
    """Turns one slice into tokens and queries, on the host.

    Args:
      samples: complex64 (R, S), or (C, R, S) of several coils.
      trajectory: their places, R readouts of S samples.
      shape: rows and columns (H, W) of the image.
      patch: rows and columns of a patch.

    Returns:
      The fields of `tokens.Batch` without the batch axis and the image; `seen` is
      absent if tokens are points.

    Raises:
      InputError: the trajectory does not fit the samples or the image.
    """
    _require_fit(samples, trajectory, shape)
    coils = samples if samples.ndim == 3 else samples[None]
    count, many = math.prod(patch), samples.shape[-1]
    rest = -many % count
    # A token has the values of all coils, those of a sample side by side.
    values_RxSxC = np.pad(np.moveaxis(coils, 0, -1), [(0, 0), (0, rest), (0, 0)])
    value = np.ascontiguousarray(values_RxSxC, np.complex64).view(np.float32)
    real = np.arange(many + rest) < many
    tokens = {
        "value": value.reshape(-1, count * 2 * len(coils)),
        "position": _positions(trajectory.points, shape, count),
        "query": np.arange(math.prod(patches.grid_of(shape, patch)), dtype=np.int32),
        "kspace": _channels(samples.reshape(*samples.shape[:-2], -1)),
        "mask": np.zeros(shape, bool),
        "trajectory": trajectory.points.reshape(-1, 2),
        "density": trajectory.density.reshape(-1),
    }
    if patch != (1, 1):
        tokens["seen"] = np.tile(real.reshape(-1, count), (samples.shape[-2], 1))
    return tokens


def _positions(points_RxSx2: np.ndarray, shape: Shape, count: int) -> np.ndarray:
    """Returns the middle of each token's samples in the coordinates of the grid.

    These span [0, 1] on each axis from the first to the last point of the grid
    (`patches.coordinates`); a trajectory may reach beyond.
    """
    size = np.array(shape)
    places = (points_RxSx2 + size // 2) / np.maximum(size - 1, 1)
    first = np.arange(0, places.shape[1], count)
    sums = np.add.reduceat(places, first, axis=1)
    middles = sums / np.diff(np.append(first, places.shape[1]))[:, None]
    return middles.reshape(-1, 2).astype(np.float32)


def _require_fit(samples: np.ndarray, trajectory: Trajectory, shape: Shape) -> None:
    """Raises InputError unless samples, trajectory and image fit each other."""
    points = trajectory.points
    if samples.ndim not in (2, 3) or samples.shape[-2:] != points.shape[:2]:
        raise InputError(
            f"samples are {samples.shape}, but the trajectory has {points.shape[0]} "
            f"readouts of {points.shape[1]} samples; use the trajectory of the scan"
        )
    if not np.isfinite(points).all():
        raise InputError("the trajectory holds values that are not finite; repair it")
    farthest = np.abs(points).max(axis=(0, 1))
    if (farthest > np.array(shape) / 2 + 1e-3).any():
        raise InputError(
            f"the trajectory reaches {farthest[0]:.4g} and {farthest[1]:.4g} along "
            f"rows and columns, beyond half the matrix of {shape[0]} x {shape[1]}; its "
            "units must be 1 / field of view"
        )


def _channels(x: np.ndarray) -> np.ndarray:
    return np.stack([x.real, x.imag], axis=-1).astype(np.float32)
