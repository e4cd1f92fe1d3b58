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
        """One, since all trajectories of a setting have as many samples."""
        return (self.config,)

    def layout(
        self, patch: Shape, patterns: Sequence[Trajectory] = ()
    ) -> ReadoutLayout:
        """Returns the layout of tokens, which all trajectories of a setting share."""
        one = patterns[0] if patterns else self.example
        readouts, samples, _ = one.points.shape
        return ReadoutLayout(readouts, samples, patch)

    @property
    def example(self) -> Trajectory:
        """A trajectory of this setting."""
        return self.random(np.random.default_rng(0))

    def at(self, shape: Shape) -> "TrajectorySampler":
        """Returns the same setting's sampler for images of another shape."""
        return dataclasses.replace(self, shape=shape)

    def random(self, rng: np.random.Generator) -> Trajectory:
        """Draws a trajectory: points anew, spokes and spirals by a turn."""
        c = self.config
        (acceleration,) = c.accelerations
        if c.kind == "gaussian_points":
            points = trajectories.gaussian_points(rng, self.shape, acceleration)
            return Trajectory(points, nufft.compensation(points, self.shape))
        angle = rng.uniform(0, 2 * np.pi)
        return _unturned(c.kind, self.shape, acceleration).turned(angle, self.shape)

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
    found = TrajectorySampler(config, shape)
    found.layout((1, 1))
    return found


@functools.cache
def _unturned(kind: str, shape: Shape, acceleration: float) -> Trajectory:
    if kind == "spiral":
        points = trajectories.spiral(shape, acceleration)
    else:
        golden = kind == "golden_radial"
        points = trajectories.radial(shape, acceleration, golden=golden)
    return Trajectory(points, nufft.compensation(points, shape))
