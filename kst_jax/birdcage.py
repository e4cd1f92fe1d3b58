"""Simulated receiver coils, by numpy alone: processes that read data lack JAX."""

import numpy as np

from kst_jax.errors import require


def birdcage(seed: int, shape: tuple[int, int], coils: int) -> np.ndarray:
    """Simulates the maps of coils on a ring around the object, a birdcage.

    A coil's field falls with the distance to it, and its phase is the direction to it.
    The ring's radius is 1.3 to 1.8 times half the field of view, its centre up to a
    quarter of that half away from the middle on each axis, and its angle arbitrary.
    Each coil is up to 5 % of the radius nearer or farther, up to a quarter of the
    distance to the next one aside, and has a phase of its own.

    Args:
      seed: selects the set; one seed always gives the same maps.
      shape: rows and columns.
      coils: number of coils C, at least 1.

    Returns:
      Maps (C, H, W), complex64, with unit norm everywhere, so that coil images of a
      volume of magnitudes combine to itself.

    Raises:
      InputError: there are no coils.
    """
    require(coils >= 1, "coils", coils, "at least 1")
    rng = np.random.default_rng(seed)
    centre = rng.uniform(-0.25, 0.25, 2)
    radius = rng.uniform(1.3, 1.8) * rng.uniform(0.95, 1.05, coils)
    place = np.arange(coils) + rng.uniform(0, coils) + rng.uniform(-0.25, 0.25, coils)
    angle = 2 * np.pi * place / coils
    gain = np.exp(2j * np.pi * rng.random(coils))
    rows, columns = (np.linspace(-1, 1, n) for n in shape)
    pixel = rows[:, None] + 1j * columns
    coil = centre[0] + 1j * centre[1] + radius * np.exp(1j * angle)
    towards = pixel - coil[:, None, None]
    # A coil's width keeps its field finite.
    field = gain[:, None, None] * towards / (np.abs(towards) ** 2 + 0.3**2)
    return (field / np.sqrt((np.abs(field) ** 2).sum(0))).astype(np.complex64)
