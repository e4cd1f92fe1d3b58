"""Settings of the data: which scans and slices, and how they become images.

They are section `data` of a run; `kst_jax.config` has the others.
"""

import dataclasses
import pathlib
import re
import typing

from kst_jax.errors import InputError, require, require_setting

PLANES = ("axial", "coronal", "sagittal")
NORMALISATIONS = ("measured", "target")
RESIZES = ("symmetric", "plain")
MAPS = ("espirit", "low_resolution")
TARGETS = ("combined", "rss")


@dataclasses.dataclass(frozen=True)
class AugmentConfig:
    """Random changes to images; off by default.

    Changes of geometry and contrast are for training alone. Phase and noise make
    simulated scans resemble measured ones, so evaluation has them too: one fixed draw
    for each slice.

    Attributes:
      flip_rows: swap top and bottom with probability 1/2.
      flip_columns: swap left and right with probability 1/2.
      rotation: largest rotation, in degrees.
      scaling: largest relative change in size (0.1: between 0.9 and 1.1).
      intensity: largest change in contrast: magnitudes are raised to a power between
        1 - intensity and 1 + intensity; phases are kept.
      phase: standard deviation, in radians, of a smooth random phase that magnitude
        images get. Without it their k-space is Hermitian, which networks learn to rely
        on and measured k-space is not.
      noise: standard deviation of complex noise in magnitude images, over their peak.
    """

    flip_rows: bool = False
    flip_columns: bool = False
    rotation: float = 0.0
    scaling: float = 0.0
    intensity: float = 0.0
    phase: float = 0.0
    noise: float = 0.0

    def __post_init__(self):
        """Raises InputError for values out of range."""
        for name in ("phase", "noise"):
            value = getattr(self, name)
            require_setting(value >= 0, f"data.augment.{name}", value, "0 or more")
        for name in ("rotation", "scaling", "intensity"):
            value, limit = getattr(self, name), 180 if name == "rotation" else 1
            require_setting(
                0 <= value < limit, f"data.augment.{name}", value, f"in [0, {limit})"
            )


@dataclasses.dataclass(frozen=True)
class CoilsConfig:
    """Receiver coils; by default one, which sees the image itself.

    Scans of one coil get simulated coils, scans of several are compressed to virtual
    ones. Sensitivity maps are estimated before undersampling, as from a calibration
    scan that does not count as sampled, and are the same for all methods.

    Attributes:
      count: coils that networks see; 1 reads scans of one coil as they are.
      sets: sets of simulated coils for each training person, drawn from at random.
        Other people have one set each.
      calibration: rows and columns in the centre of k-space that maps are estimated
        from.
      maps: how: "espirit", or the quicker "low_resolution".
      target: what reconstructions are compared with: "combined", the image that the
        maps combine, or "rss", the root sum of squares of the virtual coils' images,
        which has no phase and needs train.error="ssim".
      combine: combine the coils by their maps before undersampling, for networks that
        take one coil.
    """

    count: int = 1
    sets: int = 8
    calibration: int = 24
    maps: str = "espirit"
    target: str = "combined"
    combine: bool = False

    def __post_init__(self):
        """Raises InputError for values out of range."""
        for name, least in (("count", 1), ("sets", 1), ("calibration", 12)):
            value = getattr(self, name)
            require_setting(
                value >= least, f"data.coils.{name}", value, f"at least {least}"
            )
        for name, choices in (("maps", MAPS), ("target", TARGETS)):
            value = getattr(self, name)
            require_setting(
                value in choices, f"data.coils.{name}", value, f"one of {choices}"
            )
        require_setting(
            self.count > 1 or not self.combine,
            "data.coils.combine",
            self.combine,
            "False if data.coils.count=1",
        )
        require_setting(
            self.separate or self.target == "combined",
            "data.coils.target",
            self.target,
            "'combined' if networks see one coil",
        )

    @property
    def separate(self) -> bool:
        """Whether networks see several coils."""
        return self.count > 1 and not self.combine


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which slices of a scan are used, and whose scan it is.

    Attributes:
      plane: axial, coronal or sagittal: the plane in which NIfTI and Analyze volumes
        are sliced.
      slices: range (start, stop) of slices to use, as fractions of a volume's depth.
      drop_first: number of slices to drop at the start of each volume; the paper
        drops 5 for fastMRI.
      fraction: fraction of each volume's remaining slices to draw at random, at least
        one slice; the paper draws 0.25 for fastMRI. The draw depends only on the seed
        and the volume's name in results.
      seed: seed of that draw.
      min_foreground: NIfTI and Analyze slices are skipped as empty if a smaller
        fraction of their pixels exceeds 10 % of the volume's maximum.
      subjects: regular expression that finds a person's label in a scan's path; see
        `DataConfig.subjects`.
    """

    plane: str = "axial"
    slices: tuple[float, float] = (0.0, 1.0)
    drop_first: int = 0
    fraction: float = 1.0
    seed: int = 0
    min_foreground: float = 0.05
    subjects: str = ""

    def __post_init__(self):
        """Raises InputError for values out of range."""
        first, stop = self.slices
        for name, holds, valid in (
            ("plane", self.plane in PLANES, f"one of {', '.join(PLANES)}"),
            ("slices", 0 <= first < stop <= 1, "fractions, 0 <= start < stop <= 1"),
            ("drop_first", self.drop_first >= 0, "0 or more"),
            ("fraction", 0 < self.fraction <= 1, "a fraction in (0, 1]"),
            ("min_foreground", 0 <= self.min_foreground <= 1, "a fraction in [0, 1]"),
            (
                "subjects",
                not self.subjects or _group_count(self.subjects) == 1,
                "a regular expression with one group, the person's label, such as "
                "'([0-9]{6})/'",
            ),
        ):
            require(holds, name, getattr(self, name), valid)


def _group_count(pattern: str) -> int | None:
    """Counts the groups of a regular expression; None if it is not one."""
    try:
        return re.compile(pattern).groups
    except (re.error, RecursionError, OverflowError):
        return None


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """Which data is read and how it becomes slices.

    Attributes:
      train: scans to train on: a folder, a file, a pattern, several of these separated
        by commas, or a bundled person ("demo:train", "demo:test"). Kinds: fastMRI's
        .h5, ISMRMRD's .h5 and .mrd, BART's .cfl, NIfTI, Analyze, the authors' .npy.
      test: scans to evaluate on; if empty, some people in `train` are held out, but
        nobody for `mask.kind` "measured".
      test_fraction: fraction of people held out if `test` is empty.
      validation: scans to monitor training on (`train.validate_every`); if empty, some
        of the training people are held out.
      validation_fraction: fraction of the training people, at least one person, held
        out if `validation` is empty and training is validated.
      subjects: whose scans they are: a regular expression with one group, which is the
        person's label, such as '(IXI[0-9]+)' or, for HCP, '([0-9]{6})/'. It is searched
        in each scan's path below what `train`, `test` or `validation` names, and then
        in the whole path. If empty, `kst_jax.data.labels` decides.
      native: keep k-space as measured, as fastMRI's protocol does: only an oversampled
        readout is cropped, masks are drawn for the measured columns, and losses and
        scores are of the field that the scanner shows. Scans may differ in size.
      size: rows and columns of the reconstructed images. If `native`, the size that
        `model.lr_size` is for; the low-resolution grid keeps its share at others.
      crop: rows and columns of the field of view, cut from the centre of each slice and
        then reduced to `size` by cropping its spectrum; (0, 0) crops to `size` itself.
      pad: zero-pad slices smaller than the crop; otherwise they are an error.
      plane: "axial", "coronal" or "sagittal", for NIfTI and Analyze volumes.
      slices: range (start, stop) of slices to use, as fractions of a volume's depth.
      drop_first: number of slices to drop at the start of each volume.
      fraction: fraction of each volume's slices to draw, the same ones in every run.
      min_foreground: NIfTI and Analyze slices are skipped as empty if a smaller
        fraction of their pixels exceeds a tenth of the volume's maximum.
      augment: random changes to training images.
      coils: receiver coils.
      normalise: how values are scaled. "measured" divides by the root mean square of
        the zero-filled image, which a scan without ground truth has too. "target"
        subtracts the mean of the fully sampled slice and divides by its standard
        deviation, as the authors do: scores then use more than was measured.
      resize: how the spectrum is cropped to an even size. "symmetric" halves the
        highest frequency between its two signs, so that real images stay real; "plain"
        keeps one sign alone, as versions before 0.2 did.
      seed: seed of the training order, masks and augmentation.
      split_seed: seed of who is set apart for testing and validation, and of the
        validation masks, so that trainings with other seeds are validated alike.
      draw_seed: seed of the draw of slices (`fraction`), except from `test`, where
        `eval.seed` draws.
      workers: processes on each host that prepare batches; with 0 the training process
        does it. Workers help if `threads` cannot keep up with the devices.
      threads: threads in each worker that prepare batches, one thread to a batch.
      prefetch: batches that each worker prepares ahead and holds in memory.
    """

    train: str = ""
    test: str = ""
    test_fraction: float = 0.25
    validation: str = ""
    validation_fraction: float = 0.1
    subjects: str = ""
    native: bool = False
    size: tuple[int, int] = (128, 128)
    crop: tuple[int, int] = (0, 0)
    pad: bool = False
    plane: str = "axial"
    slices: tuple[float, float] = (0.0, 1.0)
    drop_first: int = 0
    fraction: float = 1.0
    min_foreground: float = 0.05
    augment: AugmentConfig = AugmentConfig()
    coils: CoilsConfig = CoilsConfig()
    normalise: str = "measured"
    resize: str = "symmetric"
    seed: int = 0
    split_seed: int = 0
    draw_seed: int = 0
    workers: int = 0
    threads: int = 2
    prefetch: int = 32

    def __post_init__(self):
        """Raises InputError for values out of range."""
        for name in ("size", "crop", "slices"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        require_setting(min(self.size) >= 8, "data.size", self.size, "at least (8, 8)")
        self.selection(self.draw_seed)
        for name, valid in (("normalise", NORMALISATIONS), ("resize", RESIZES)):
            value = getattr(self, name)
            require_setting(value in valid, f"data.{name}", value, f"one of {valid}")
        for name in ("test_fraction", "validation_fraction"):
            value = getattr(self, name)
            require_setting(0 < value < 1, f"data.{name}", value, "between 0 and 1")
        large_enough = all(
            c == 0 or c >= s for c, s in zip(self.crop, self.size, strict=True)
        )
        require_setting(
            large_enough, "data.crop", self.crop, f"at least data.size={self.size}"
        )
        if self.native:
            self._require_unchanged()
        require_setting(
            not self.coils.separate or self.normalise == "measured",
            "data.normalise",
            self.normalise,
            "'measured' for several coils (data.coils)",
        )
        require_setting(
            self.coils.count == 1 or self.coils.calibration <= min(self.size),
            "data.coils.calibration",
            self.coils.calibration,
            f"at most data.size={self.size}",
        )
        require_setting(self.workers >= 0, "data.workers", self.workers, "0 or more")
        for name in ("threads", "prefetch"):
            value = getattr(self, name)
            require_setting(value >= 1, f"data.{name}", value, "at least 1")

    def _require_unchanged(self) -> None:
        """Raises InputError for settings that need a resized image."""
        default, valid = DataConfig(), "left at its default if data.native=True"
        for name in ("crop", "pad"):
            value = getattr(self, name)
            require_setting(
                value == getattr(default, name), f"data.{name}", value, valid
            )
        for name in ("flip_rows", "flip_columns", "rotation", "scaling", "intensity"):
            value = getattr(self.augment, name)
            require_setting(not value, f"data.augment.{name}", value, valid)

    def selection(self, seed: int) -> Selection:
        """Returns which slices of a scan are used; `seed` draws the `fraction`."""
        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(Selection)
        }
        try:
            return Selection(**options | {"seed": seed})
        except InputError as error:
            raise InputError(f"config.data.{error}") from None

    def by_name(self) -> "DataConfig":
        """Cuts paths to file names, so that it does not matter where the data is."""
        names: dict[str, typing.Any] = {
            part: last_names(getattr(self, part))
            for part in ("train", "test", "validation")
        }
        return dataclasses.replace(self, **names)


def last_names(paths: str) -> str:
    """Cuts each path of a list with commas to its last name."""
    parts = (pathlib.PurePath(path.strip()).name for path in paths.split(","))
    return ",".join(part for part in parts if part)
