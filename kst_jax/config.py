"""Every setting of a run, with its default and its meaning.

Those of the data are in `kst_jax.data_config`, those of the masks in
`kst_jax.mask_config`, those of a network in its own file.

Configs are immutable and checked on construction. `kst_jax.config_dict` builds them
from config files.
"""

import dataclasses

from kst_jax.data_config import DataConfig
from kst_jax.errors import InputError, require_setting
from kst_jax.eval_config import EvalConfig
from kst_jax.mask_config import MaskConfig
from kst_jax.models.config import KSTConfig, ModelConfig

_CHOICES = {
    "optimizer": ("adamw", "rmsprop"),
    "schedule": ("cosine", "constant", "step", "halving"),
    "error": ("squared", "absolute", "relative", "ssim"),
    "domain": ("image", "both"),
    "supervision": ("target", "self"),
}


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
      supervision: what images are compared with: the fully sampled "target", or, by
        "self", measured points of the slice itself that the network does not see
        (`kst_jax.data.splits`, `kst_jax.training.held_out`), which needs no target.
      held_out: share of a slice's measured places outside the centre that "self" holds
        out for comparison, drawn anew at each visit.
      validation_share: share of a slice's measured places outside the centre that
        training never sees, to validate by them on the training scans themselves
        (zero-shot training; Yaman et al., ICLR 2022); for mask.kind="measured". 0
        validates on other people.
      weighted: divide errors at held-out points by the probability that a point is held
        out, so that the expected squared error is the one over all points.
      error: how an image is compared with the target: by the mean "squared" (the paper)
        or "absolute" difference, by the "relative" one, the norm of the difference
        over the norm of the target, or by 1 - "ssim" of the magnitudes, fastMRI's, with
        the largest magnitude of the target's volume as data range. For supervision by
        targets alone, as `domain`.
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
        (`data.validation`), using the parameters' moving average if there is one. With
        supervision "self" it is the error of the reconstruction at held-out points. 0
        turns validation off.
      keep_best: how many checkpoints that are best in validation, by PSNR or by error,
        to keep as well.
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
    supervision: str = "target"
    held_out: float = 0.4
    validation_share: float = 0.0
    weighted: bool = False
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
            require_setting(value >= 0, f"train.{name}", value, "0 or more")
        for name in ("learning_rate", "last_weight"):
            value = getattr(self, name)
            require_setting(value > 0, f"train.{name}", value, "above 0")
        require_setting(
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
            require_setting(value >= 1, f"train.{name}", value, "at least 1")
        require_setting(
            self.batch_size % self.accumulate == 0,
            "train.accumulate",
            self.accumulate,
            f"a divisor of train.batch_size={self.batch_size}",
        )
        for name, valid in _CHOICES.items():
            value = getattr(self, name)
            require_setting(
                value in valid, f"train.{name}", value, f"one of {', '.join(valid)}"
            )
        require_setting(
            self.error == "squared" or self.domain == "image",
            "train.domain",
            self.domain,
            f"'image' if train.error={self.error!r}",
        )
        require_setting(
            0 < self.held_out < 1, "train.held_out", self.held_out, "between 0 and 1"
        )
        require_setting(
            0 <= self.validation_share < 1,
            "train.validation_share",
            self.validation_share,
            "at least 0 and below 1",
        )
        for name in ("held_out", "weighted"):
            value = getattr(self, name)
            require_setting(
                self.self_supervised or value == getattr(TrainConfig, name),
                f"train.{name}",
                value,
                "left at its default unless train.supervision='self'",
            )
        require_setting(0 <= self.ema < 1, "train.ema", self.ema, "in [0, 1)")
        require_setting(
            len(self.stages) == 3
            and min(self.stages) >= 0
            and abs(sum(self.stages) - 1) < 1e-6,
            "train.stages",
            self.stages,
            "three fractions that add to 1",
        )
        require_setting(
            0 <= self.warmup_steps < self.steps,
            "train.warmup_steps",
            self.warmup_steps,
            f"below train.steps={self.steps}",
        )

    @property
    def self_supervised(self) -> bool:
        """Whether measured points take the place of targets."""
        return self.supervision == "self"


@dataclasses.dataclass(frozen=True)
class Config:
    """A whole run."""

    data: DataConfig = DataConfig()  # noqa: RUF009 (immutable)
    mask: MaskConfig = MaskConfig()  # noqa: RUF009 (immutable)
    model: ModelConfig = KSTConfig()  # noqa: RUF009 (immutable)
    train: TrainConfig = TrainConfig()
    eval: EvalConfig = EvalConfig()  # noqa: RUF009 (immutable)

    def __post_init__(self):
        """Raises InputError if two sections contradict each other."""
        self.model.require_size(self.data.size)
        require_setting(
            self.data.coils.target == "combined" or self.train.error == "ssim",
            "data.coils.target",
            self.data.coils.target,
            "'combined' unless train.error='ssim', which compares magnitudes",
        )
        if self.data.coils.separate:
            self.model.require_coils(self.data.coils)
        require_setting(
            not self.data.validation or self.train.validate_every > 0,
            "data.validation",
            self.data.validation,
            "empty if train.validate_every=0, which turns validation off",
        )
        require_setting(
            self.train.error != "ssim" or self.data.normalise == "measured",
            "data.normalise",
            self.data.normalise,
            "'measured' if train.error='ssim': a mean subtracted changes magnitudes",
        )
        if self.train.self_supervised:
            self._require_self_supervision()
        if self.has_deviations:
            require_setting(
                self.data.normalise == "measured",
                "data.normalise",
                self.data.normalise,
                "'measured' with model.deviation or eval.members: a mean subtracted "
                "changes magnitudes",
            )
        require_setting(
            self.has_deviations or not self.eval.calibration,
            "eval.calibration",
            self.eval.calibration,
            "empty without model.deviation or eval.members: there are no deviations",
        )
        if self.mask.off_grid:
            self._require_trajectories()
        if self.mask.measured:
            self._require_own_masks()
        require_setting(
            self.train.validation_share == 0
            or (self.train.validate_every > 0 and not self.data.validation),
            "train.validation_share",
            self.train.validation_share,
            "0 unless train.validate_every is set and data.validation is empty",
        )
        for name, seed in {
            "data.seed": self.data.seed,
            "data.split_seed": self.data.split_seed,
            "data.draw_seed": self.data.draw_seed,
            "train.seed": self.train.seed,
            "eval.seed": self.eval.seed,
        }.items():
            require_setting(0 <= seed < 2**32, name, seed, "from 0 to 2^32 - 1")

    def _require_self_supervision(self) -> None:
        """Raises InputError for settings that need more than one scan measures."""
        data, why = self.data, "if train.supervision='self'"
        require_setting(
            data.normalise == "measured",
            "data.normalise",
            data.normalise,
            f"'measured' {why}: there is no target to scale by",
        )
        require_setting(
            data.coils.target == "combined",
            "data.coils.target",
            data.coils.target,
            f"'combined' {why}: magnitudes alone have no spectrum to compare",
        )
        for name in ("rotation", "scaling", "intensity"):
            value = getattr(data.augment, name)
            require_setting(
                not value,
                f"data.augment.{name}",
                value,
                f"0 {why}: only the whole image can be changed so; flips are possible",
            )
        require_setting(
            not self.train.weighted or self.mask.accelerates,
            "train.weighted",
            self.train.weighted,
            f"False if mask.kind={self.mask.kind!r}: nobody knows how likely these "
            "masks are",
        )
        self.model.require_targets()
        if data.coils.separate:
            self.model.require_phase()
            require_setting(
                not self.model.has_lr_decoder or self.train.stages[0] == 0,
                "train.stages",
                self.train.stages,
                "(0, ...) for several coils if train.supervision='self': stage LR has "
                "only low-resolution images, which these coils do not compare",
            )

    def _require_trajectories(self) -> None:
        """Raises InputError for settings that need samples on the grid."""
        why = f"if mask.kind={self.mask.kind!r}"
        self.model.require_trajectories(self.mask.kind, self.data.coils)
        require_setting(
            self.data.normalise == "measured",
            "data.normalise",
            self.data.normalise,
            f"'measured' {why}",
        )
        require_setting(
            not self.train.self_supervised,
            "train.supervision",
            self.train.supervision,
            f"'target' {why}: only points of the grid are split",
        )

    def _require_own_masks(self) -> None:
        """Raises InputError for settings that do not suit undersampled scans."""
        why = "if mask.kind='measured'"
        for name, value, valid in (
            ("train.supervision", self.train.supervision, "self"),
            ("data.native", self.data.native, True),
            ("data.coils.combine", self.data.coils.combine, False),
        ):
            require_setting(value == valid, name, value, f"{valid!r} {why}")

    @property
    def has_deviations(self) -> bool:
        """Whether an evaluation has standard deviations of its images."""
        return self.model.predicts_deviation or bool(self.eval.further_runs)

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
