"""Sizes and choices: of every network, and of the K-Space Transformer.

Apart from the networks, so that a config can be read without loading one.
"""

import dataclasses

from kst_jax.errors import require

DTYPES = ("float32", "bfloat16")
ATTENTIONS = ("auto", "plain", "blocked", "cudnn")
REMATS = ("none", "blocks", "layers")


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """Sizes and choices of a network; each network has its own kind.

    Attributes:
      name: which network, a key of `kst_jax.models.registry.MODELS`.
      dtype: precision of products, "float32" or "bfloat16"; parameters, Fourier
        transforms and data consistency are float32 in either.
    """

    name: str = ""
    dtype: str = "float32"

    def __post_init__(self):
        """Raises InputError for values out of range."""
        holds = self.dtype in DTYPES
        require_option(self, "dtype", holds, f"one of {', '.join(DTYPES)}")

    def require_size(self, size: tuple[int, int]) -> None:
        """Raises InputError for images (rows, columns) that the network cannot do."""

    def resized(self, size: tuple[int, int], new: tuple[int, int]) -> "ModelConfig":
        """The same network for images of `new` instead of `size`.

        Raises:
          InputError: there is none.
        """
        del size, new
        return self


def require_option(config: ModelConfig, name: str, holds: bool, valid: str) -> None:
    """Raises InputError where an option is not `valid`, said in words."""
    require(holds, f"config.model.{name}", getattr(config, name), valid)


def require_positive(config: ModelConfig) -> None:
    """Raises InputError where a whole number of a config is below 1."""
    for field in dataclasses.fields(config):
        if field.type is int:
            holds = getattr(config, field.name) >= 1
            require_option(config, field.name, holds, "at least 1")


def require_odd(config: ModelConfig, name: str) -> None:
    """Raises InputError where the size of a kernel is even."""
    require_option(config, name, getattr(config, name) % 2 == 1, "odd")


@dataclasses.dataclass(frozen=True)
class KSTConfig(ModelConfig):
    """Sizes and choices of the K-Space Transformer; the defaults are the paper's.

    Attributes:
      width: features of a token (D).
      heads: attention heads (K).
      mlp: hidden features of the feed-forward blocks.
      encoder_layers: layers of the encoder.
      lr_layers: layers of the low-resolution decoder.
      hr_layers: layers of the high-resolution decoder.
      lr_size: rows and columns of the low-resolution grid; must divide the image's.
      lr_decoder: False leaves the low-resolution decoder out (paper Table 3): queries
        attend to the encoder's output and start from the zero-filled spectrum.
      refinement: False leaves the image-domain refinement out (paper Table 3).
      refinement_features: channels of the refinement's convolutions.
      refinement_layers: convolutions with an activation in a refinement.
      refinement_kernel: their kernel size.
      residual_spectrum: not in the paper: where above 0, a high-resolution layer's head
        predicts the change of the spectrum at the queries, in units of this, instead of
        its value.
      log_magnitude: not in the paper: values are embedded with the logarithm of
        1 + magnitude for magnitude; a spectrum's span several orders.
      shared_refinement: not in the paper: all layers refine with the same weights.
      attention: how attention is computed; see `kst_jax.models.attention`.
      remat: what training keeps for the gradient, and so its memory; see
        `kst_jax.models.rematerialisation`.
    """

    name: str = "kst"
    width: int = 256
    heads: int = 4
    mlp: int = 1024
    encoder_layers: int = 4
    lr_layers: int = 4
    hr_layers: int = 6
    lr_size: tuple[int, int] = (64, 64)
    lr_decoder: bool = True
    refinement: bool = True
    refinement_features: int = 64
    refinement_layers: int = 4
    refinement_kernel: int = 3
    residual_spectrum: float = 0.0
    log_magnitude: bool = False
    shared_refinement: bool = False
    attention: str = "auto"
    remat: str = "blocks"

    def __post_init__(self):
        """Raises InputError where the sizes cannot make a network."""
        super().__post_init__()
        object.__setattr__(self, "lr_size", tuple(self.lr_size))
        require_positive(self)
        require_option(self, "lr_size", min(self.lr_size) >= 1, "at least (1, 1)")
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
            f"auto, or another that computes in dtype={self.dtype}",
        )

    def require_size(self, size: tuple[int, int]) -> None:
        """Raises InputError where the low-resolution grid does not divide the image."""
        if not self.lr_decoder:
            return
        require(
            not any(s % n for s, n in zip(size, self.lr_size, strict=True)),
            "config.model.lr_size",
            self.lr_size,
            f"whole fractions of data.size={size}",
        )

    def resized(self, size: tuple[int, int], new: tuple[int, int]) -> "KSTConfig":
        """Keeps the low-resolution grid's share of the image."""
        self.require_size(size)
        if not self.lr_decoder:
            return self
        shares = [s // n for s, n in zip(size, self.lr_size, strict=True)]
        lr_size = new[0] // shares[0], new[1] // shares[1]
        resized = dataclasses.replace(self, lr_size=lr_size)
        resized.require_size(new)
        return resized
