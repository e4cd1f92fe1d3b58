"""Every setting of a run, with its default and its meaning; a model's are its file's.

They are checked where they are made, and immutable; `kst_jax.config_dict` makes them of
config files.
"""

import dataclasses
import pathlib
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
    """Random changes of training images; all off by default, and in evaluation.

    Attributes:
      flip_rows: flip top and bottom, half of the time.
      flip_columns: flip left and right, half of the time.
      rotation: largest rotation, in degrees.
      scaling: largest change of size, as a share (0.1: between 0.9 and 1.1).
      intensity: largest change of contrast: magnitudes are raised to a power between
        1 - intensity and 1 + intensity, phases stay.
    """

    flip_rows: bool = False
    flip_columns: bool = False
    rotation: float = 0.0
    scaling: float = 0.0
    intensity: float = 0.0

    def __post_init__(self):
        """Raises InputError for values out of range."""
        for name in ("rotation", "scaling", "intensity"):
            value, limit = getattr(self, name), 180 if name == "rotation" else 1
            _require(
                0 <= value < limit, f"data.augment.{name}", value, f"in [0, {limit})"
            )


@dataclasses.dataclass(frozen=True)
class Selection:
    """Which slices of a scan are taken.

    Attributes:
      plane: axial, coronal or sagittal: how NIfTI and Analyze volumes are cut.
      slices: range (start, stop) of slices to take, as shares of a volume's depth.
      drop_first: number of slices to drop at the start of each volume; the paper
        drops 5 of fastMRI's.
      fraction: share of the remaining slices of each volume to draw at random, at
        least one; the paper draws 0.25 of fastMRI's. The draw depends on seed and
        volume alone, not on the other files.
      seed: of that draw.
      min_foreground: NIfTI and Analyze slices with a smaller share of pixels above
        10 % of the volume's maximum are left out as empty.
    """

    plane: str = "axial"
    slices: tuple[float, float] = (0.0, 1.0)
    drop_first: int = 0
    fraction: float = 1.0
    seed: int = 0
    min_foreground: float = 0.05

    def __post_init__(self):
        """Raises InputError for values out of range."""
        first, stop = self.slices
        for name, holds, valid in (
            ("plane", self.plane in PLANES, f"one of {', '.join(PLANES)}"),
            ("slices", 0 <= first < stop <= 1, "shares with 0 <= start < stop <= 1"),
            ("drop_first", self.drop_first >= 0, "0 or more"),
            ("fraction", 0 < self.fraction <= 1, "a share above 0, at most 1"),
            ("min_foreground", 0 <= self.min_foreground <= 1, "a share from 0 to 1"),
        ):
            require(holds, name, getattr(self, name), valid)


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read and how it becomes slices.

    Attributes:
      train: scans to train on: a folder, a file, a pattern, several of these separated
        by commas, or a bundled person ("demo:train", "demo:test"). Kinds: fastMRI's
        single-coil .h5, NIfTI, Analyze, the authors' .npy, or a folder that
        `python -m kst_jax.data.prepare` made of them.
      test: scans to evaluate on; if empty, people are set aside from `train`.
      test_fraction: share of people set aside where `test` is empty.
      validation: scans to watch training on (`train.validate_every`); if empty, people
        are set apart from the training's.
      validation_fraction: share of the training's people, at least one, set apart where
        `validation` is empty and training is validated.
      size: rows and columns of the images that are reconstructed.
      crop: rows and columns of the field of view, cut from the centre of each slice and
        then brought to `size` by cropping its spectrum; (0, 0) crops to `size` itself.
      pad: zero-pad slices smaller than the crop, where otherwise they are an error.
      plane: "axial", "coronal" or "sagittal", for NIfTI and Analyze volumes.
      slices: part of each volume to take, as shares of its slices.
      drop_first: slices left out at the start of each volume.
      fraction: share of each volume's slices to draw, the same ones in every run.
      min_foreground: slices with a smaller share of pixels above a tenth of the
        volume's brightness are left out as empty (NIfTI and Analyze).
      augment: random changes in training.
      seed: seed of the order, the masks and the augmentation in training, of the
        splits, the draw of slices, and the masks in validation.
      workers: processes of each host that prepare batches; 0 does it in the training's
        own. They help where `threads` cannot keep up with the devices.
      threads: threads that prepare batches, in each worker; a batch is prepared by one.
      prefetch: batches prepared ahead, in each worker; they are held in memory.
    """

    train: str = ""
    test: str = ""
    test_fraction: float = 0.25
    validation: str = ""
    validation_fraction: float = 0.1
    size: tuple[int, int] = (128, 128)
    crop: tuple[int, int] = (0, 0)
    pad: bool = False
    plane: str = "axial"
    slices: tuple[float, float] = (0.0, 1.0)
    drop_first: int = 0
    fraction: float = 1.0
    min_foreground: float = 0.05
    augment: AugmentConfig = AugmentConfig()
    seed: int = 0
    workers: int = 0
    threads: int = 2
    prefetch: int = 32

    def __post_init__(self):
        """Raises InputError for values out of range."""
        for name in ("size", "crop", "slices"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
        _require(min(self.size) >= 8, "data.size", self.size, "at least (8, 8)")
        self.selection(self.seed)
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
        """Which slices of a scan are taken, drawn by `seed` where `fraction` is."""
        options = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(Selection)
        }
        try:
            return Selection(**options | {"seed": seed})
        except InputError as error:
            raise InputError(f"config.data.{error}") from None

    def by_name(self) -> "DataConfig":
        """The same scans by their last names, wherever somebody keeps them."""
        names: dict[str, typing.Any] = {
            part: ",".join(
                pathlib.PurePath(path).name for path in getattr(self, part).split(",")
            )
            for part in ("train", "test", "validation")
        }
        return dataclasses.replace(self, **names)


@dataclasses.dataclass(frozen=True)
class MaskConfig:
    """How k-space is undersampled; see `kst_jax.sampling`.

    Attributes:
      kind: "gaussian_2d", "uniform_1d", "fastmri_random", "fastmri_equispaced",
        "fastmri_equispaced_fraction" or "bank".
      acceleration: all points over sampled points; without effect where a bank has it.
      calibration: width of the fully sampled centre: columns (uniform_1d) or the side
        of a square (gaussian_2d), counted within the acceleration's budget.
      center_fraction: share of columns in the fully sampled centre of fastMRI's kinds.
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
                f"0 where mask.kind={self.kind!r}, whose centre is mask."
                "center_fraction's or the bank's",
            )
        if self.kind not in FASTMRI_MASKS:
            _require(
                self.center_fraction == MaskConfig.center_fraction,
                "mask.center_fraction",
                self.center_fraction,
                f"left alone where mask.kind={self.kind!r}, whose centre is mask."
                "calibration's or the bank's",
            )
        _require(
            not self.bank or self.kind == "bank",
            "mask.bank",
            self.bank,
            f"empty where mask.kind={self.kind!r}, or mask.kind=bank",
        )
        _require(
            self.kind != "fastmri_equispaced" or self.acceleration % 1 == 0,
            "mask.acceleration",
            self.acceleration,
            "a whole number (or take fastmri_equispaced_fraction)",
        )


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """How a model is trained; by default as the authors do, but for `steps`.

    Attributes:
      steps: optimiser steps in all.
      batch_size: slices a step, over all devices.
      accumulate: micro-batches that a step goes through one after the other, to save
        memory; they change nothing but rounding.
      optimizer: "adamw", or "rmsprop".
      learning_rate: the optimiser's peak rate.
      schedule: what becomes of the rate: "cosine" falls to zero over `steps`,
        "constant" stays, "step" falls to a tenth after four fifths of the steps,
        "halving" halves after every twentieth of them.
      warmup_steps: steps of linear growth of the rate before.
      weight_decay: decoupled weight decay.
      clip_norm: largest norm of the gradient; 0 does not clip.
      ema: decay of the moving average of parameters that is evaluated; 0 keeps none.
      stages: shares of the steps for the stages LR, K and RM. A stage that the model
        has no part for is left to the one after it, or before it at the end.
      error: how an image is compared with the target: the mean "squared" (the paper)
        or "absolute" difference, or "relative", the norm of the difference over the
        target's.
      domain: where images are compared: "image" (the paper), or "both", in k-space too
        (the authors' code), for the squared error.
      layer_weight: weight of each supervised layer's loss.
      last_weight: weight of the last high-resolution layer, and of the last
        low-resolution layer during stage LR.
      keep_lr_weight: the last low-resolution layer keeps `last_weight` after stage LR,
        as in the authors' uninterrupted runs; otherwise it goes to `layer_weight`.
      seed: seed of the initial parameters.
      log_every: steps between logged scalars; checkpoints are logged, too.
      image_every: steps between logged images; 0 logs none.
      checkpoint_every: steps between checkpoints; there is also one after the last
        step, at each validation, and where a run is stopped by SIGTERM or Ctrl-C.
      keep: how many of the latest checkpoints to keep.
      validate_every: steps between validations, which log the mean PSNR and SSIM of
        the normalised validation slices (`data.validation`), by the parameters'
        moving average where there is one; also after the last step. 0: none.
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
            "0 where train.validate_every=0: the best are those of validation",
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
            f"'image' where train.error={self.error!r}",
        )
        _require(0 <= self.ema < 1, "train.ema", self.ema, "in [0, 1)")
        _require(
            len(self.stages) == 3
            and min(self.stages) >= 0
            and abs(sum(self.stages) - 1) < 1e-6,
            "train.stages",
            self.stages,
            "three shares that add to 1",
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
      query_devices: devices that share the high-resolution queries of each slice, for a
        fast answer to few slices; must divide the devices of a process. Networks other
        than the K-Space Transformer have none to share, and gain nothing.
      figures: slices shown in the figures, spread over the test scans; at most 24.
      seed: seed of the test masks, and of the draw of slices from `data.test`; kept
        apart from the training's, so that runs of several seeds meet the same test.
      out: folder for metrics, reconstructions and figures; if empty, `eval` in the
        run's folder.
      checkpoint: "latest", or "best": of those kept, the one with the highest PSNR in
        validation (`train.validate_every`, `train.keep_best`).
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
        """Raises InputError where two sections do not fit."""
        self.model.require_size(self.data.size)
        _require(
            not self.data.validation or self.train.validate_every > 0,
            "data.validation",
            self.data.validation,
            "empty where train.validate_every=0, which validates nothing",
        )
        for name in ("data", "train", "eval"):
            seed = getattr(self, name).seed
            _require(0 <= seed < 2**32, f"{name}.seed", seed, "from 0 to 2^32 - 1")


def require_config(config: object) -> None:
    """Raises InputError where a run is given what a config file gives, unchecked."""
    if not isinstance(config, Config):
        raise InputError(
            f"a run takes a kst_jax.config.Config, not a {type(config).__name__}: give "
            "it kst_jax.config_dict.from_dict(config)"
        )
