"""Prepares slices that were sampled off the grid for a network, on the host."""

import dataclasses
import functools

import numpy as np

from kst_jax import trajectories
from kst_jax.config import Config
from kst_jax.data import nufft, trajectory_sampling
from kst_jax.data.fourier import fft2c, ifft2c
from kst_jax.data.off_grid import OffGridVolume
from kst_jax.data.samples import Geometry
from kst_jax.mask_config import MaskConfig
from kst_jax.trajectories import Trajectory

Shape = tuple[int, int]


@dataclasses.dataclass(frozen=True, eq=False)
class OffGrid:
    """One slice, ready for a network.

    Attributes:
      kspace: samples, complex64 (R, S), or (C, R, S) of several coils.
      trajectory: their places.
      calibration: spectrum (H, W) or (C, H, W) of the gridded images, from whose centre
        sensitivity maps are estimated.
      geometry: the grid of the images; None if the scan has no header.
    """

    kspace: np.ndarray
    trajectory: Trajectory
    calibration: np.ndarray
    geometry: Geometry | None

    @property
    def acceleration(self) -> float:
        """Points of the grid over those that the readouts run over."""
        return trajectories.acceleration(self.trajectory.points, self._shape)

    @property
    def _shape(self) -> Shape:
        rows, columns = self.calibration.shape[-2:]
        return rows, columns

    @classmethod
    def gridded(
        cls,
        samples: np.ndarray,
        trajectory: Trajectory,
        shape: Shape,
        geometry: Geometry | None,
    ) -> "OffGrid":
        """Grids samples, weighted by their density, for the calibration."""
        weighted = samples * trajectory.density
        image = nufft.to_image(weighted, trajectory.points, shape)
        return cls(samples, trajectory, fft2c(image), geometry)


def measure(volume: OffGridVolume, index: int) -> OffGrid:
    """Reads one slice.

    Raises:
      InputError: its samples or their places cannot be used.
    """
    found = volume.read(index)
    points = np.ascontiguousarray(found.points, np.float32)
    density = _density(points.tobytes(), points.shape, volume.shape)
    trajectory = Trajectory(points, density)
    return OffGrid.gridded(found.samples, trajectory, volume.shape, volume.geometry)


def simulate(
    kspace: np.ndarray,
    geometry: Geometry | None,
    config: Config,
    acceleration: float,
    place: tuple[str, int],
) -> OffGrid:
    """Samples a fully sampled slice by the network's own trajectory, for a try.

    Args:
      kspace: complex64 (H, W), or (C, H, W) of several coils.
      geometry: the scan's grid; None if it has no header.
      config: the config of the network's run.
      acceleration: of the trajectory.
      place: the file's name and the number of the slice, which seed the draw.

    Raises:
      InputError: the acceleration leaves nothing to sample.
    """
    rows, columns = kspace.shape[-2:]
    pattern = dataclasses.replace(config.mask, acceleration=acceleration)
    sampler = trajectory_sampling.sampler(pattern, (rows, columns))
    trajectory = sampler.fixed(*place, config.eval.seed)
    samples = nufft.to_samples(ifft2c(kspace), trajectory.points)
    return OffGrid.gridded(samples, trajectory, (rows, columns), geometry)


# Slices often share a trajectory.
@functools.lru_cache(maxsize=2)
def _density(points: bytes, sizes: tuple[int, ...], shape: Shape) -> np.ndarray:
    return nufft.compensation(np.frombuffer(points, np.float32).reshape(sizes), shape)


def differences(measurement: OffGrid, config: Config) -> dict[str, str]:
    """Describes how a slice's sampling differs from the network's training, by kind."""
    rows, columns = measurement.calibration.shape[-2:]
    shape, found = (rows, columns), {}
    own = measurement.trajectory.points
    trained = _example(config.mask, shape)
    ratio = trajectories.acceleration(own, shape) / trajectories.acceleration(
        trained, shape
    )
    if not 0.8 < ratio < 1.25:
        (acceleration,) = config.mask.accelerations
        found["acceleration"] = (
            f"is undersampled {ratio * acceleration:.1f} times; the network was "
            f"trained on {acceleration:g} times"
        )
    if _kind(own) != _kind(trained):
        found["pattern"] = (
            f"is sampled by {_kind(own)}; the network was trained on {_kind(trained)}"
        )
    return found


def _example(config: MaskConfig, shape: Shape) -> np.ndarray:
    sampler = trajectory_sampling.sampler(config, shape)
    return sampler.random(np.random.default_rng(0)).points


def _kind(points: np.ndarray) -> str:
    """Tells spokes, curves and single points apart."""
    if points.shape[1] < 2:
        return "single points"
    across = np.linalg.norm(points[:, -1] - points[:, 0], axis=-1)
    along = np.linalg.norm(np.diff(points, axis=1), axis=-1).sum(axis=1)
    return "straight lines" if np.median(across / along) > 0.99 else "curves"
