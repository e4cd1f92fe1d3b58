"""Config that all networks share, and the K-Space Transformer's.

This file is separate from the networks, so that a config can be read without them.
"""

import dataclasses
from typing import ClassVar

from kst_jax.data_config import CoilsConfig
from kst_jax.errors import require

DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("auto", "plain", "blocked", "cudnn")
REMATS = ("none", "blocks", "layers")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and options of a network; each network has its own subclass.

    Attributes:
      name: the network, a key of `kst_jax.models.registry.MODELS`.
      dtype: precision of products, "float32" or "bfloat16"; parameters, Fourier
        transforms and data consistency are float32 with both.
    """

    # Whether the network reconstructs scans of several coils, given their maps.
    takes_coils: ClassVar[bool] = False
    # Whether it reconstructs scans that were sampled off the grid.
    takes_trajectories: ClassVar[bool] = False

    name: str = ""
    dtype: str = "float32"

    def __post_init__(self):
        """Raises InputError for values out of range."""
        holds = self.dtype in DTYPES
        require_option(self, "dtype", holds, f"one of {', '.join(DTYPES)}")

    @property
    def patch(self) -> tuple[int, int]:
        """Rows and columns of neighbouring points of k-space that form a token."""
        return (1, 1)

    def require_size(self, size: tuple[int, int]) -> None:
        """Raises InputError if the network cannot process images (rows, columns)."""

    def require_coils(self, coils: CoilsConfig) -> None:
        """Raises InputError if the network cannot process these separate coils."""
        require(
            self.takes_coils,
            "config.data.coils.count",
            coils.count,
            f"1, or combined (data.coils.combine), for model.name={self.name!r}",
        )

    def require_trajectories(self, kind: str, coils: CoilsConfig) -> None:
        """Raises InputError if the network cannot process what a trajectory samples."""
        del coils
        require(
            self.takes_trajectories,
            "config.mask.kind",
            kind,
            f"on the grid for model.name={self.name!r}; off the grid, kst, unet and "
            "sense reconstruct",
        )

    @property
    def has_lr_decoder(self) -> bool:
        """Whether the network makes low-resolution images first."""
        return False

    @property
    def predicts_deviation(self) -> bool:
        """Whether the network predicts the standard deviation of its image."""
        return False

    def require_targets(self) -> None:
        """Raises InputError if a part of the network is trained by targets alone."""

    def require_phase(self) -> None:
        """Raises InputError if its images of several coils have no phase of theirs."""

    def resized(self, size: tuple[int, int], new: tuple[int, int]) -> "ModelConfig":
        """Returns the config of the same network for images of `new`, not `size`.

        Raises:
          InputError: the network does not exist for that size.
        """
        del size, new
        return self


def require_option(config: ModelConfig, name: str, holds: bool, valid: str) -> None:
    """Raises InputError unless `holds`; `valid` describes the valid values in words."""
    require(holds, f"config.model.{name}", getattr(config, name), valid)


def require_positive(config: ModelConfig) -> None:
    """Raises InputError if any whole number in a config is below 1."""
    for field in dataclasses.fields(config):
        if field.type is int:
            holds = getattr(config, field.name) >= 1
            require_option(config, field.name, holds, "at least 1")


def require_odd(config: ModelConfig, name: str) -> None:
    """Raises InputError if a kernel size is even."""
    require_option(config, name, getattr(config, name) % 2 == 1, "odd")


@dataclasses.dataclass(frozen=True)
class KSTConfig(ModelConfig):
    """Sizes and options of the K-Space Transformer; the defaults are the paper's.

    Attributes:
      width: features of a token (D).
      heads: attention heads (K).
      mlp: hidden features of the feed-forward blocks.
      encoder_layers: layers of the encoder.
      lr_layers: layers of the low-resolution decoder.
      hr_layers: layers of the high-resolution decoder.
      lr_size: rows and columns of the low-resolution grid, at most the image's.
      patch: not in the paper: rows and columns of neighbouring points that form a token
        or a query, on both grids; see `kst_jax.patches`. Under line sampling give the
        patch one column, so that it is wholly sampled or not at all.
      transformer: not in the paper: False leaves out the encoder, the low-resolution
        decoder and cross-attention: each query starts from the zero-filled spectrum
        and is alone in the high-resolution decoder. Shows what attention gives.
      hybrid: not in the paper: True adds attention along the columns, in hybrid space,
        to each layer of the high-resolution decoder; see `kst_jax.models.hybrid`.
      lr_decoder: False leaves the low-resolution decoder out (paper Table 3): queries
        attend to the encoder's output and start from the zero-filled spectrum.
      refinement: False leaves the image-domain refinement out (paper Table 3).
      refinement_features: channels of the refinement's convolutions.
      refinement_layers: convolutions with an activation in each refinement.
      refinement_kernel: kernel size of these convolutions.
      residual_spectrum: not in the paper: if above 0, a high-resolution layer's head
        predicts the change of the spectrum at the queries, in units of this number,
        instead of its value.
      log_magnitude: not in the paper: values are embedded with log(1 + magnitude) as
        their magnitude, since a spectrum spans several orders of magnitude.
      shared_refinement: not in the paper: all layers refine with the same weights.
      deviation: not in the paper: True predicts the standard deviation of the image at
        each pixel too; see `kst_jax.models.deviation`.
      attention: how attention is computed; see `kst_jax.models.attention`.
      remat: which activations training keeps for the gradient, which sets its memory;
        see `kst_jax.models.rematerialisation`.
    """

    takes_coils = True
    takes_trajectories = True

    name: str = "kst"
    width: int = 256
    heads: int = 4
    mlp: int = 1024
    encoder_layers: int = 4
    lr_layers: int = 4
    hr_layers: int = 6
    lr_size: tuple[int, int] = (64, 64)
    patch: tuple[int, int] = (1, 1)
    transformer: bool = True
    hybrid: bool = False
    lr_decoder: bool = True
    refinement: bool = True
    refinement_features: int = 64
    refinement_layers: int = 4
    refinement_kernel: int = 3
    residual_spectrum: float = 0.0
    log_magnitude: bool = False
    shared_refinement: bool = False
    deviation: bool = False
    attention: str = "auto"
    remat: str = "blocks"

    def __post_init__(self):
        """Raises InputError if no network can have these sizes."""
        super().__post_init__()
        require_positive(self)
        for name in ("lr_size", "patch"):
            object.__setattr__(self, name, tuple(getattr(self, name)))
            require_option(self, name, min(getattr(self, name)) >= 1, "at least (1, 1)")
        require_option(
            self,
            "width",
            self.width % 4 == 0 and self.width % self.heads == 0,
            f"a multiple of 4 (sine and cosine of two axes) and of heads={self.heads}",
        )
        require_option(
            self, "residual_spectrum", self.residual_spectrum >= 0, "0 or more"
        )
        require_odd(self, "refinement_kernel")
        for name, choices in (
            ("attention", ATTENTIONS),
            ("remat", REMATS),
        ):
            holds = getattr(self, name) in choices
            require_option(self, name, holds, f"one of {', '.join(choices)}")
        require_option(
            self,
            "attention",
            self.attention != "cudnn" or self.dtype == "bfloat16",
            f"auto, or one that supports dtype={self.dtype}",
        )

    @property
    def has_lr_decoder(self) -> bool:
        """Whether the network has a low-resolution decoder."""
        return self.transformer and self.lr_decoder

    @property
    def predicts_deviation(self) -> bool:
        """Whether the network predicts the standard deviation of its image."""
        return self.deviation

    def require_trajectories(self, kind: str, coils: CoilsConfig) -> None:
        """Raises InputError for attention along the columns of the grid."""
        super().require_trajectories(kind, coils)
        require_option(self, "hybrid", not self.hybrid, f"False if mask.kind={kind!r}")

    def require_targets(self) -> None:
        """Raises InputError for deviations, which are learned from targets."""
        why = "False if train.supervision='self': no target, so no error to learn"
        require_option(self, "deviation", not self.deviation, why)

    def require_size(self, size: tuple[int, int]) -> None:
        """Raises InputError if the low-resolution grid is larger than the image."""
        if not self.has_lr_decoder:
            return
        require(
            all(n <= s for s, n in zip(size, self.lr_size, strict=True)),
            "config.model.lr_size",
            self.lr_size,
            f"at most data.size={size}",
        )

    def resized(self, size: tuple[int, int], new: tuple[int, int]) -> "KSTConfig":
        """Scales the low-resolution grid with the image."""
        if not self.has_lr_decoder:
            return self
        rows, columns = (
            max(1, round(n * low / s))
            for s, low, n in zip(size, self.lr_size, new, strict=True)
        )
        return dataclasses.replace(self, lr_size=(rows, columns))
