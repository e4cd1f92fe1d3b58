"""Units of trajectories: which one a file uses, and how to convert it.

ISMRMRD does not fix the units of trajectories, and converters differ. A trajectory
reaches about the edge of k-space, which tells them apart.
"""

import dataclasses

import numpy as np

from kst_jax.errors import InputError

UNITS = (
    *("1/fov", "1/recon_fov", "cycles/pixel"),
    *("radians/pixel", "cycles/m", "radians/m"),
)
# How far a trajectory reaches, as a share of the edge of k-space.
_LEAST, _MOST = 0.3, 1.02
# A trajectory that reaches the edge in one unit is in that one, though a smaller part
# of k-space would fit another.
_WHOLE = 0.9


@dataclasses.dataclass(frozen=True)
class Sizes:
    """The sizes that units refer to.

    Readouts in all directions have the readout's oversampling and its pixel, so both
    sizes are the readout's; along the phase encoding, headers of such scans may count
    readouts instead.

    Attributes:
      field: rows and columns in mm of the image (the header's reconSpace).
      pixel: along rows and columns in mm, as encoded.
      oversampling: the encoded field of view over the image's, along the readout.
    """

    field: tuple[float, float]
    pixel: tuple[float, float]
    oversampling: float

    @classmethod
    def of(
        cls,
        encoded: tuple[int, float],
        matrix: tuple[int, int],
        field: tuple[float, float],
    ) -> "Sizes":
        """Makes the sizes of a header; raises ValueError for impossible ones.

        Args:
          encoded: the encoded matrix and its field of view in mm, along the readout.
          matrix: rows and columns of the image.
          field: their extent in mm.
        """
        values = np.array([*encoded, *matrix, *field], float)
        if not (np.isfinite(values).all() and (values > 0).all()):
            raise ValueError(f"a matrix of {matrix} over {field} mm")
        # Pixels as encoded have the proportions of the image's.
        finer = (encoded[1] / encoded[0]) / (field[0] / matrix[0])
        pixel = finer * field[0] / matrix[0], finer * field[1] / matrix[1]
        return cls(field, pixel, encoded[1] / field[0])

    @property
    def edge(self) -> np.ndarray:
        """The edge of k-space along rows and columns, in 1 / field."""
        return np.array(self.field) / np.array(self.pixel) / 2

    def factors(self) -> dict[str, np.ndarray]:
        """Returns for each unit the factors of rows and columns to 1 / field."""
        metres = np.array(self.field) / 1000
        return {
            "1/fov": np.full(2, 1 / self.oversampling),
            "1/recon_fov": np.ones(2),
            "cycles/pixel": 2 * self.edge,
            "radians/pixel": self.edge / np.pi,
            "cycles/m": metres,
            "radians/m": metres / (2 * np.pi),
        }


def factor_of(largest: np.ndarray, sizes: Sizes, units: str, where: str) -> np.ndarray:
    """Returns the factors (2,) from a trajectory's units to 1 / field of view.

    Args:
      largest: largest coordinates of rows and columns, (2,), as stored.
      sizes: what units refer to.
      units: a name in UNITS; empty if they are to be recognised.
      where: names the file.

    Raises:
      InputError: no unit fits, or several do; or in the given one, points lie beyond
        the edge of k-space.
    """
    factors = sizes.factors()
    reach = {
        name: float((largest * one / sizes.edge).max()) for name, one in factors.items()
    }
    if units:
        if reach[units] > _MOST:
            raise InputError(
                f"{where}: its trajectory reaches {largest.max():.4g}, which in "
                f"{units} is {reach[units]:.3g} times the edge of k-space. "
                f"{_remedy(sizes)}"
            )
        return factors[units]
    fitting = [name for name in reach if _LEAST <= reach[name] <= _MOST]
    if np.allclose(factors["1/fov"], 1, rtol=1e-3) and "1/fov" in fitting:
        fitting.remove("1/recon_fov")  # the same
    whole = [name for name in fitting if reach[name] >= _WHOLE]
    chosen = fitting if len(fitting) == 1 else whole
    if len(chosen) == 1:
        return factors[chosen[0]]
    fits = " and ".join(fitting) + " fit" if fitting else "no unit fits"
    raise InputError(
        f"{where}: its trajectory reaches {largest.max():.4g}; {fits} this. "
        f"{_remedy(sizes)}"
    )


def _remedy(sizes: Sizes) -> str:
    places = ", ".join(
        f"{(sizes.edge / one).max():.4g} {name}"
        for name, one in sizes.factors().items()
    )
    return (
        f"By its header the edge of k-space is {places}. Name the units with "
        "kst-reconstruct --trajectory_units, or correct trajectory or header."
    )
