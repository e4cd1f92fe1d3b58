"""Trajectories: which points of k-space are measured if they lie off the grid.

Points are given in units of 1 / field of view along rows and columns, from the centre
of k-space. A grid of H rows and W columns spans those within half of H and W.
"""

import dataclasses

import numpy as np

from kst_jax.errors import InputError

Shape = tuple[int, int]

# Between one spoke and the next, in radians: 180 degrees over the golden ratio.
_GOLDEN_ANGLE = np.pi * (np.sqrt(5) - 1) / 2
# Samples of a readout for each column: a spoke across k-space, a turn of a spiral.
_SPOKE, _TURN = 2, 3
# How soon a spiral reaches its speed along the path; it starts slower.
_START = 0.2


@dataclasses.dataclass(frozen=True, eq=False)
class Trajectory:
    """The points that a scan measures.

    Attributes:
      points: (R, S, 2), row then column: R readouts of S samples, float32.
      density: (R, S) weights that compensate for the samples' density, float32; see
        `kst_jax.data.nufft.compensation`.
    """

    points: np.ndarray
    density: np.ndarray

    def turned(self, angle: float, shape: Shape) -> "Trajectory":
        """Turns a trajectory about the centre, in a field of view of a shape.

        Distances of points stay as they are, and so does their density.
        """
        half = np.array(shape) / 2
        turn = np.array(
            [[np.cos(angle), np.sin(angle)], [-np.sin(angle), np.cos(angle)]]
        )
        points = (self.points / half) @ turn.T * half
        return dataclasses.replace(self, points=points.astype(np.float32))


def radial(shape: Shape, acceleration: float, *, golden: bool = False) -> np.ndarray:
    """Returns spokes through the centre of k-space.

    Args:
      shape: rows and columns (H, W) of the image.
      acceleration: columns of the image over spokes, so that a scan takes as long as a
        Cartesian one of this acceleration.
      golden: the angle from one spoke to the next is the golden one, instead of equal
        parts of 180 degrees.

    Returns:
      (R, S, 2): W / acceleration spokes of two samples a column. The sample in the
      middle is the centre of k-space.

    Raises:
      InputError: no spoke is left.
    """
    spokes = _count(shape[1] / acceleration, acceleration, "spoke")
    angle_R = np.arange(spokes) * (_GOLDEN_ANGLE if golden else np.pi / spokes)
    samples = _SPOKE * shape[1]
    radius_S = (np.arange(samples) - samples // 2) / (samples / 2)
    return _polar(radius_S[None, :], angle_R[:, None], shape)


def spiral(shape: Shape, acceleration: float) -> np.ndarray:
    """Returns arms of an Archimedean spiral, from the centre outwards, of a turn each.

    Args:
      shape: rows and columns (H, W) of the image.
      acceleration: distance between the arms in units of 1 / field of view.

    Returns:
      (R, S, 2): W / (2 acceleration) arms of three samples a column.

    Raises:
      InputError: no arm is left.
    """
    arms = _count(shape[1] / (2 * acceleration), acceleration, "arm")
    part_S = np.arange(_TURN * shape[1]) / (_TURN * shape[1] - 1)
    # Evenly along the path, but slower at its start.
    radius_S = np.sqrt(part_S + _START**2) - _START
    radius_S /= radius_S[-1]
    start_R = 2 * np.pi * np.arange(arms) / arms
    return _polar(radius_S[None, :], start_R[:, None] + 2 * np.pi * radius_S, shape)


def gaussian_points(
    rng: np.random.Generator, shape: Shape, acceleration: float
) -> np.ndarray:
    """Draws single points from a normal distribution about the centre.

    The distribution is that of `kst_jax.masks.gaussian_2d`, but points need not be of
    the grid.

    Args:
      rng: source of randomness.
      shape: rows and columns (H, W) of the image.
      acceleration: H * W over the number of points.

    Returns:
      (R, 1, 2): int(H * W / acceleration) points, each a readout.

    Raises:
      InputError: no point is left.
    """
    count = _count(shape[0] * shape[1] / acceleration, acceleration, "point")
    half, points = np.array(shape) / 2, np.empty((0, 2))
    while len(points) < count:
        drawn = rng.normal(size=(count, 2)) * half / 2
        points = np.concatenate([points, drawn[(np.abs(drawn) < half).all(axis=1)]])
    return points[:count, None].astype(np.float32)


def covered(points: np.ndarray) -> float:
    """Returns how many points of the grid readouts (R, S, 2) run over.

    A sample covers as much of its readout as the distance to the next one, at most 1.
    So a spoke across k-space covers as many points as a line of a Cartesian scan, and a
    single point covers one.
    """
    count = points.shape[1]
    if count == 1:
        return float(len(points))
    steps = np.linalg.norm(np.diff(points, axis=1), axis=-1)
    return float(np.minimum(steps, 1).mean(axis=1).sum() * count)


def acceleration(points: np.ndarray, shape: Shape) -> float:
    """Returns the points of the grid over those that readouts (R, S, 2) run over.

    For spokes it is the matrix's rows over their number, for single points the grid's
    points over theirs. Spirals cover k-space by arms one unit apart, without its
    corners, so this number is up to a quarter above the arms' distance.
    """
    return shape[0] * shape[1] / covered(points)


def _polar(radius: np.ndarray, angle: np.ndarray, shape: Shape) -> np.ndarray:
    """Returns points at these radii, 1 at the edge of k-space, and angles."""
    half = np.array(shape) / 2
    points = np.stack([radius * np.sin(angle), radius * np.cos(angle)], axis=-1) * half
    return points.astype(np.float32)


def _count(number: float, acceleration: float, what: str) -> int:
    if number < 1:
        raise InputError(
            f"acceleration {acceleration} leaves no {what}; lower mask.acceleration"
        )
    return int(number)
