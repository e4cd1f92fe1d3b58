"""Settings of undersampling; they are section `mask` of a run."""

import dataclasses
import pathlib

from kst_jax.errors import require_setting

EXACT_MASKS = ("gaussian_2d", "uniform_1d")
FASTMRI_MASKS = (
    "fastmri_random",
    "fastmri_equispaced",
    "fastmri_equispaced_fraction",
)
# Off the grid; see `kst_jax.trajectories`.
TRAJECTORIES = ("radial", "golden_radial", "spiral", "gaussian_points")
_GIVEN = ("bank", "measured")
_MASKS = (*EXACT_MASKS, *FASTMRI_MASKS, *_GIVEN, *TRAJECTORIES)


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """How k-space is undersampled; see `kst_jax.masks` and `kst_jax.trajectories`.

    Attributes:
      kind: "gaussian_2d", "uniform_1d", "fastmri_random", "fastmri_equispaced",
        "fastmri_equispaced_fraction" or "bank"; "measured", the masks of the scans
        themselves, which were undersampled at the scanner; or, off the grid, "radial",
        "golden_radial", "spiral" or "gaussian_points".
      acceleration: all points over sampled points; ignored for kinds "bank" and
        "measured". fastMRI's kinds may have several, such as (4.0, 8.0): each mask
        draws one of them. Radial sampling has as many spokes as Cartesian sampling
        would have columns.
      calibration: width of the fully sampled centre: columns (uniform_1d) or the side
        of a square (gaussian_2d), included in the acceleration's budget.
      center_fraction: fraction of columns in the fully sampled centre, for fastMRI's
        kinds: one for each acceleration.
      bank: path of a .npy array of masks (M, H, W), for kind "bank".
    """

    kind: str = "gaussian_2d"
    acceleration: float | tuple[float, ...] = 5.0
    calibration: int = 0
    center_fraction: float | tuple[float, ...] = 0.08
    bank: str = ""

    def __post_init__(self):
        """Raises InputError for values out of range."""
        require_setting(
            self.kind in _MASKS, "mask.kind", self.kind, f"one of {', '.join(_MASKS)}"
        )
        for name in ("acceleration", "center_fraction"):
            value = getattr(self, name)
            if isinstance(value, list):  # as JSON gives it
                object.__setattr__(self, name, tuple(value))
        require_setting(
            min(self.accelerations, default=0) > 1,
            "mask.acceleration",
            self.acceleration,
            "above 1 (all points over sampled points)",
        )
        require_setting(
            all(0 < fraction <= 1 for fraction in self.center_fractions),
            "mask.center_fraction",
            self.center_fraction,
            "in (0, 1]",
        )
        require_setting(
            self.kind not in FASTMRI_MASKS
            or len(self.accelerations) == len(self.center_fractions),
            "mask.center_fraction",
            self.center_fraction,
            f"one number for each of mask.acceleration={self.acceleration}",
        )
        require_setting(
            self.kind in FASTMRI_MASKS or len(self.accelerations) == 1,
            "mask.acceleration",
            self.acceleration,
            f"one number if mask.kind={self.kind!r}; fastMRI's kinds may have several",
        )
        require_setting(
            self.calibration >= 0, "mask.calibration", self.calibration, ">= 0"
        )
        if self.kind not in EXACT_MASKS:
            require_setting(
                self.calibration == 0,
                "mask.calibration",
                self.calibration,
                f"0 if mask.kind={self.kind!r}: mask.center_fraction, the bank, the "
                "trajectory or the scan sets its centre",
            )
        if self.kind not in FASTMRI_MASKS:
            require_setting(
                self.center_fraction == MaskConfig.center_fraction,
                "mask.center_fraction",
                self.center_fraction,
                f"left at its default if mask.kind={self.kind!r}: mask.calibration, "
                "the bank, the trajectory or the scan sets its centre",
            )
        require_setting(
            not self.bank or self.kind == "bank",
            "mask.bank",
            self.bank,
            f"empty if mask.kind={self.kind!r}; to use it, set mask.kind=bank",
        )
        require_setting(
            self.kind != "fastmri_equispaced"
            or all(acceleration % 1 == 0 for acceleration in self.accelerations),
            "mask.acceleration",
            self.acceleration,
            "a whole number; for others use mask.kind=fastmri_equispaced_fraction",
        )

    @property
    def off_grid(self) -> bool:
        """Whether points are sampled that the grid of k-space does not have."""
        return self.kind in TRAJECTORIES

    @property
    def unaided(self) -> str:
        """The name of the image that samples give by themselves."""
        return "Gridded" if self.off_grid else "Zero-filled"

    @property
    def accelerations(self) -> tuple[float, ...]:
        """The acceleration, or each of several."""
        return _several(self.acceleration)

    @property
    def center_fractions(self) -> tuple[float, ...]:
        """The fraction of columns in the centre for each acceleration."""
        return _several(self.center_fraction)

    @property
    def measured(self) -> bool:
        """Whether the masks are those of the scans themselves."""
        return self.kind == "measured"

    @property
    def accelerates(self) -> bool:
        """Whether patterns are drawn at an acceleration, rather than given."""
        return self.kind not in _GIVEN

    def by_name(self) -> "MaskConfig":
        """Cuts the bank's path to its file name."""
        return dataclasses.replace(self, bank=pathlib.PurePath(self.bank).name)


def _several(value: float | tuple[float, ...]) -> tuple[float, ...]:
    return value if isinstance(value, tuple) else (value,)
