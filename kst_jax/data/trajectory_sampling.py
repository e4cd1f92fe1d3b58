"""Which trajectory a slice gets: a fresh one in training, its own in evaluation."""

import dataclasses
import functools
from collections.abc import Sequence

import numpy as np

from kst_jax import trajectories
from kst_jax.data import nufft
from kst_jax.mask_config import MaskConfig
from kst_jax.readouts import ReadoutLayout
from kst_jax.sampling import slice_rng
from kst_jax.trajectories import Trajectory

Shape = tuple[int, int]


@dataclasses.dataclass(frozen=True)
class TrajectorySampler:
    """Draws the trajectories of one setting; the counterpart of `sampling.Sampler`.

    Attributes:
      config: the setting.
      shape: rows and columns (H, W) of the images.
    """

    config: MaskConfig
    shape: Shape

    @property
    def buckets(self) -> tuple:
        """One layout, since all trajectories of a setting have as many samples."""
        return (self.layout((1, 1)),)

    def layout(
        self, patch: Shape, patterns: Sequence[Trajectory] = ()
    ) -> ReadoutLayout:
        """Returns the layout of tokens, which all trajectories of a setting share."""
        del patterns
        return ReadoutLayout(*_size(self.config, self.shape), patch)

    def at(self, shape: Shape) -> "TrajectorySampler":
        """Returns the same setting's sampler for images of another shape.

        Raises:
          InputError: the setting leaves nothing to sample.
        """
        return sampler(self.config, shape)

    def random(self, rng: np.random.Generator) -> Trajectory:
        """Draws a trajectory: points anew, spokes and spirals by a turn."""
        if self.config.kind == "gaussian_points":
            return _compensated(_points(self.config, self.shape, rng), self.shape)
        angle = rng.uniform(0, 2 * np.pi)
        return _unturned(self.config, self.shape).turned(angle, self.shape)

    def fixed(self, file: str, index: int, seed: int) -> Trajectory:
        """Draws the trajectory of one slice, the same in every evaluation."""
        return self.random(slice_rng(file, index, seed))

    def fixed_acceleration(self, file: str) -> float:
        """Returns the acceleration of a file's `fixed` trajectories."""
        del file
        return self.config.accelerations[0]


def sampler(config: MaskConfig, shape: Shape) -> TrajectorySampler:
    """Checks a setting and makes its sampler.

    Args:
      config: the setting.
      shape: rows and columns (H, W) of the images.

    Raises:
      InputError: the setting leaves nothing to sample.
    """
    _size(config, shape)
    return TrajectorySampler(config, shape)


def _points(config: MaskConfig, shape: Shape, rng: np.random.Generator) -> np.ndarray:
    """Returns points (R, S, 2): single ones are drawn, others not turned yet."""
    (acceleration,) = config.accelerations
    if config.kind == "gaussian_points":
        return trajectories.gaussian_points(rng, shape, acceleration)
    if config.kind == "spiral":
        return trajectories.spiral(shape, acceleration)
    golden = config.kind == "golden_radial"
    return trajectories.radial(shape, acceleration, golden=golden)


@functools.cache
def _size(config: MaskConfig, shape: Shape) -> tuple[int, int]:
    """Returns the number of readouts of a setting, and of the samples of each."""
    readouts, samples, _ = _points(config, shape, np.random.default_rng(0)).shape
    return readouts, samples


@functools.cache
def _unturned(config: MaskConfig, shape: Shape) -> Trajectory:
    # Its density is computed once: turning does not change it.
    return _compensated(_points(config, shape, np.random.default_rng(0)), shape)


def _compensated(points: np.ndarray, shape: Shape) -> Trajectory:
    return Trajectory(points, nufft.compensation(points, shape))
