"""The networks by name."""

from typing import NamedTuple

from kst_jax.errors import InputError
from kst_jax.models.contract import ModelConfig, Reconstructor
from kst_jax.models.kst import KSpaceTransformer, KSTConfig


class Entry(NamedTuple):
    """A network and the kind of config that it takes."""

    network: type[Reconstructor]
    config: type[ModelConfig]


MODELS = {
    "kst": Entry(KSpaceTransformer, KSTConfig),
}


def entry(name: str) -> Entry:
    """The network of a name.

    Raises:
      InputError: there is none.
    """
    if name not in MODELS:
        raise InputError(
            f"config.model.name={name!r} is unknown; use one of {', '.join(MODELS)}"
        )
    return MODELS[name]


def build(config: ModelConfig) -> Reconstructor:
    """The network that a config describes."""
    return entry(config.name).network(config)
