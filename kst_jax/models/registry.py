"""The networks by name."""

from typing import NamedTuple

from kst_jax.errors import InputError
from kst_jax.models.admm import ADMM, ADMMConfig
from kst_jax.models.config import KSTConfig, ModelConfig
from kst_jax.models.contract import Reconstructor
from kst_jax.models.d5c5 import D5C5, D5C5Config
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.models.oucr import OUCR, OUCRConfig
from kst_jax.models.sense import SENSE, SENSEConfig
from kst_jax.models.tv import TV, TVConfig
from kst_jax.models.unet import KUNet, KUNetConfig, UNet, UNetConfig
from kst_jax.models.varnet import VarNet, VarNetConfig


class Entry(NamedTuple):
    """A network and its class of config."""

    network: type[Reconstructor]
    config: type[ModelConfig]


MODELS = {
    "kst": Entry(KSpaceTransformer, KSTConfig),
    "d5c5": Entry(D5C5, D5C5Config),
    "unet": Entry(UNet, UNetConfig),
    "kunet": Entry(KUNet, KUNetConfig),
    "oucr": Entry(OUCR, OUCRConfig),
    "admm": Entry(ADMM, ADMMConfig),
    "tv": Entry(TV, TVConfig),
    "sense": Entry(SENSE, SENSEConfig),
    "varnet": Entry(VarNet, VarNetConfig),
}


def entry(name: str) -> Entry:
    """Returns the network with a name, and its config.

    Raises:
      InputError: no network has that name.
    """
    if not isinstance(name, str) or name not in MODELS:
        raise InputError(
            f"config.model.name={name!r} is unknown; use one of {', '.join(MODELS)}"
        )
    return MODELS[name]


def build(config: ModelConfig, size: tuple[int, int] | None = None) -> Reconstructor:
    """Builds the network that a config describes.

    Args:
      config: the network's.
      size: rows and columns of the images that the config is for; see `Reconstructor`.
    """
    return entry(config.name).network(config, size=size)
