"""Every setting of a run, with its default and meaning; each model's file has its own.

Configs are immutable and checked on construction. `kst_jax.config_dict` builds them
from config files.
"""

import dataclasses
import pathlib
import re
import typing

from kst_jax.errors import InputError, require
from kst_jax.models.config import KSTConfig, ModelConfig

PLANES = ("axial", "coronal", "sagittal")
EXACT_MASKS = ("gaussian_2d", "uniform_1d")
FASTMRI_MASKS = (
    "fastmri_random",
    "fastmri_equispaced",
    "fastmri_equispaced_fraction",
)
_MASKS = (*EXACT_MASKS, *FASTMRI_MASKS, "bank")
NORMALISATIONS = ("measured", "target")
RESIZES = ("symmetric", "plain")
_CHOICES = {
    "optimizer": ("adamw", "rmsprop"),
    "schedule": ("cosine", "constant", "step", "halving"),
    "error": ("squared", "absolute", "relative"),
    "domain": ("image", "both"),
}


def _require(holds: bool, name: str, value: object, valid: str) -> None:
    require(holds, f"config.{name}", value, valid)


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
            _require(value >= 0, f"data.augment.{name}", value, "0 or more")
        for name in ("rotation", "scaling", "intensity"):
            value, limit = getattr(self, name), 180 if name == "rotation" else 1
            _require(
                0 <= value < limit, f"data.augment.{name}", value, f"in [0, {limit})"
            )


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
        and the volume, not on the other files.
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
        single-coil .h5, NIfTI, Analyze, the authors' .npy.
      test: scans to evaluate on; if empty, some people in `train` are held out.
      test_fraction: fraction of people held out if `test` is empty.
      validation: scans to monitor training on (`train.validate_every`); if empty, some
        of the training people are held out.
      validation_fraction: fraction of the training people, at least one person, held
        out if `validation` is empty and training is validated.
      subjects: whose scans they are: a regular expression with one group, which is the
        person's label, such as '(IXI[0-9]+)' or, for HCP, '([0-9]{6})/'. It is searched
        in each scan's path below what `train`, `test` or `validation` names, and then
        in the whole path. If empty, `kst_jax.data.labels` decides.
      size: rows and columns of the reconstructed images.
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
    size: tuple[int, int] = (128, 128)
    crop: tuple[int, int] = (0, 0)
    pad: bool = False
    plane: str = "axial"
    slices: tuple[float, float] = (0.0, 1.0)
    drop_first: int = 0
    fraction: float = 1.0
    min_foreground: float = 0.05
    augment: AugmentConfig = AugmentConfig()
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
        _require(min(self.size) >= 8, "data.size", self.size, "at least (8, 8)")
        self.selection(self.draw_seed)
        for name, valid in (("normalise", NORMALISATIONS), ("resize", RESIZES)):
            value = getattr(self, name)
            _require(value in valid, f"data.{name}", value, f"one of {valid}")
        for name in ("test_fraction", "validation_fraction"):
            value = getattr(self, name)
            _require(0 < value < 1, f"data.{name}", value, "between 0 and 1")
        large_enough = all(
            c == 0 or c >= s for c, s in zip(self.crop, self.size, strict=True)
        )
        _require(
            large_enough, "data.crop", self.crop, f"at least data.size={self.size}"
        )
        _require(self.workers >= 0, "data.workers", self.workers, "0 or more")
        for name in ("threads", "prefetch"):
            value = getattr(self, name)
            _require(value >= 1, f"data.{name}", value, "at least 1")

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


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """How k-space is undersampled; see `kst_jax.sampling`.

    Attributes:
      kind: "gaussian_2d", "uniform_1d", "fastmri_random", "fastmri_equispaced",
        "fastmri_equispaced_fraction" or "bank".
      acceleration: all points over sampled points; ignored for kind "bank".
      calibration: width of the fully sampled centre: columns (uniform_1d) or the side
        of a square (gaussian_2d), included in the acceleration's budget.
      center_fraction: fraction of columns in the fully sampled centre, for fastMRI's
        kinds.
      bank: path of a .npy array of masks (M, H, W), for kind "bank".
    """

    kind: str = "gaussian_2d"
    acceleration: float = 5.0
    calibration: int = 0
    center_fraction: float = 0.08
    bank: str = ""

    def __post_init__(self):
        """Raises InputError for values out of range."""
        _require(
            self.kind in _MASKS, "mask.kind", self.kind, f"one of {', '.join(_MASKS)}"
        )
        _require(
            self.acceleration > 1,
            "mask.acceleration",
            self.acceleration,
            "above 1 (all points over sampled points)",
        )
        _require(
            0 < self.center_fraction <= 1,
            "mask.center_fraction",
            self.center_fraction,
            "in (0, 1]",
        )
        _require(self.calibration >= 0, "mask.calibration", self.calibration, ">= 0")
        if self.kind not in EXACT_MASKS:
            _require(
                self.calibration == 0,
                "mask.calibration",
                self.calibration,
                f"0 if mask.kind={self.kind!r}: mask.center_fraction or the bank sets "
                "its centre",
            )
        if self.kind not in FASTMRI_MASKS:
            _require(
                self.center_fraction == MaskConfig.center_fraction,
                "mask.center_fraction",
                self.center_fraction,
                f"left at its default if mask.kind={self.kind!r}: mask.calibration or "
                "the bank sets its centre",
            )
        _require(
            not self.bank or self.kind == "bank",
            "mask.bank",
            self.bank,
            f"empty if mask.kind={self.kind!r}; to use it, set mask.kind=bank",
        )
        _require(
            self.kind != "fastmri_equispaced" or self.acceleration % 1 == 0,
            "mask.acceleration",
            self.acceleration,
            "a whole number; for others use mask.kind=fastmri_equispaced_fraction",
        )

    def by_name(self) -> "MaskConfig":
        """Cuts the bank's path to its file name."""
        return dataclasses.replace(self, bank=pathlib.PurePath(self.bank).name)


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; apart from `steps` the defaults are the authors'.

    Attributes:
      steps: total optimiser steps.
      batch_size: slices per step, over all devices.
      accumulate: micro-batches that each step processes in turn, to save memory; the
        result differs only by rounding.
      optimizer: "adamw" or "rmsprop".
      learning_rate: the optimiser's peak learning rate.
      schedule: how the rate changes: "cosine" falls to zero over `steps`, "constant"
        stays, "step" falls to a tenth after four fifths of the steps, "halving" halves
        after every twentieth of them.
      warmup_steps: steps over which the rate first grows linearly.
      weight_decay: decoupled weight decay.
      clip_norm: largest norm of the gradient; 0 turns clipping off.
      ema: decay of the parameters' moving average, which is evaluated; 0 keeps none.
      stages: fractions of the steps for the stages LR, K and RM. The steps of a stage
        that the model lacks go to the next stage, or, at the end, to the previous one.
      error: how an image is compared with the target: by the mean "squared" (the paper)
        or "absolute" difference, or by the "relative" one, the norm of the difference
        over the norm of the target.
      domain: where images are compared: in the "image" domain (the paper), or in
        "both", k-space too (the authors' code); "both" needs the squared error.
      layer_weight: weight of each supervised layer's loss.
      last_weight: weight of the last high-resolution layer, and of the last
        low-resolution layer during stage LR.
      keep_lr_weight: the last low-resolution layer keeps `last_weight` after stage LR,
        as in the authors' uninterrupted runs; otherwise it drops to `layer_weight`.
      seed: seed of the initial parameters.
      log_every: steps between logged scalars; checkpoint steps are logged as well.
      image_every: steps between logged images; 0 logs none.
      checkpoint_every: steps between checkpoints; the last step, each validation and a
        stop by SIGTERM or Ctrl-C also save one.
      keep: how many of the latest checkpoints to keep.
      validate_every: steps between validations; the last step is also validated. Each
        logs the mean PSNR and SSIM of the normalised validation slices
        (`data.validation`), using the parameters' moving average if there is one. 0
        turns validation off.
      keep_best: how many checkpoints with the highest validation PSNR to keep as well.
    """

    steps: int = 100_000
    batch_size: int = 4
    accumulate: int = 1
    optimizer: str = "adamw"
    learning_rate: float = 5e-4
    schedule: str = "cosine"
    warmup_steps: int = 0
    weight_decay: float = 0.0
    clip_norm: float = 0.0
    ema: float = 0.0
    stages: tuple[float, float, float] = (0.25, 0.25, 0.5)
    error: str = "squared"
    domain: str = "both"
    layer_weight: float = 0.3
    last_weight: float = 1.0
    keep_lr_weight: bool = True
    seed: int = 0
    log_every: int = 50
    image_every: int = 1000
    checkpoint_every: int = 1000
    keep: int = 2
    validate_every: int = 0
    keep_best: int = 0

    def __post_init__(self):
        """Raises InputError for values out of range."""
        object.__setattr__(self, "stages", tuple(self.stages))
        for name in (
            *("clip_norm", "weight_decay", "image_every"),
            *("validate_every", "keep_best", "layer_weight"),
        ):
            value = getattr(self, name)
            _require(value >= 0, f"train.{name}", value, "0 or more")
        for name in ("learning_rate", "last_weight"):
            value = getattr(self, name)
            _require(value > 0, f"train.{name}", value, "above 0")
        _require(
            self.validate_every > 0 or self.keep_best == 0,
            "train.keep_best",
            self.keep_best,
            "0 if train.validate_every=0: validation decides which are best",
        )
        for name in (
            *("steps", "batch_size", "accumulate"),
            *("log_every", "checkpoint_every", "keep"),
        ):
            value = getattr(self, name)
            _require(value >= 1, f"train.{name}", value, "at least 1")
        _require(
            self.batch_size % self.accumulate == 0,
            "train.accumulate",
            self.accumulate,
            f"a divisor of train.batch_size={self.batch_size}",
        )
        for name, valid in _CHOICES.items():
            value = getattr(self, name)
            _require(
                value in valid, f"train.{name}", value, f"one of {', '.join(valid)}"
            )
        _require(
            self.error == "squared" or self.domain == "image",
            "train.domain",
            self.domain,
            f"'image' if train.error={self.error!r}",
        )
        _require(0 <= self.ema < 1, "train.ema", self.ema, "in [0, 1)")
        _require(
            len(self.stages) == 3
            and min(self.stages) >= 0
            and abs(sum(self.stages) - 1) < 1e-6,
            "train.stages",
            self.stages,
            "three fractions that add to 1",
        )
        _require(
            0 <= self.warmup_steps < self.steps,
            "train.warmup_steps",
            self.warmup_steps,
            f"below train.steps={self.steps}",
        )


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """How a model is evaluated.

    Attributes:
      batch_size: slices at a time, over all devices.
      query_devices: devices that share the high-resolution queries of each slice, which
        reconstructs a few slices sooner; must divide the number of devices of a
        process. Only the K-Space Transformer has such queries; other networks gain
        nothing.
      figures: slices shown in the figures, spread over the test scans; at most 24.
      seed: seed of the test masks and of the draw of slices from `data.test`; separate
        from the training seeds, so that runs with different seeds share one test.
      out: folder for metrics, reconstructions and figures; if empty, `eval` in the
        run's folder.
      checkpoint: "latest", or "best": the one with the highest validation PSNR among
        those kept (`train.validate_every`, `train.keep_best`).
    """

    batch_size: int = 4
    query_devices: int = 1
    figures: int = 3
    seed: int = 0
    out: str = ""
    checkpoint: str = "latest"

    def __post_init__(self):
        """Raises InputError for values out of range."""
        which = ("latest", "best")
        _require(
            self.checkpoint in which,
            "eval.checkpoint",
            self.checkpoint,
            f"one of {which}",
        )
        for name in ("batch_size", "query_devices"):
            value = getattr(self, name)
            _require(value >= 1, f"eval.{name}", value, "at least 1")
        _require(0 <= self.figures <= 24, "eval.figures", self.figures, "from 0 to 24")


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    data: DataConfig = DataConfig()
    mask: MaskConfig = MaskConfig()
    model: ModelConfig = KSTConfig()  # noqa: RUF009 (immutable)
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()

    def __post_init__(self):
        """Raises InputError if two sections contradict each other."""
        self.model.require_size(self.data.size)
        _require(
            not self.data.validation or self.train.validate_every > 0,
            "data.validation",
            self.data.validation,
            "empty if train.validate_every=0, which turns validation off",
        )
        for name, seed in {
            "data.seed": self.data.seed,
            "data.split_seed": self.data.split_seed,
            "data.draw_seed": self.data.draw_seed,
            "train.seed": self.train.seed,
            "eval.seed": self.eval.seed,
        }.items():
            _require(0 <= seed < 2**32, name, seed, "from 0 to 2^32 - 1")

    def by_name(self) -> "Config":
        """Cuts paths of inputs to file names; it does not matter where they are."""
        return dataclasses.replace(
            self, data=self.data.by_name(), mask=self.mask.by_name()
        )


def require_config(config: object) -> None:
    """Raises InputError for an unchecked config, such as a config file's ConfigDict."""
    if not isinstance(config, Config):
        raise InputError(
            f"a run needs a kst_jax.config.Config, not a {type(config).__name__}: pass "
            "kst_jax.config_dict.from_dict(config)"
        )
