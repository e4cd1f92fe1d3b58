"""Reads the networks of an ensemble: runs that differ in their seed."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path

from kst_jax.config import Config
from kst_jax.errors import InputError
from kst_jax.models.registry import build
from kst_jax.runs import agreement, checkpoints
from kst_jax.stages import require_trained


@dataclasses.dataclass(frozen=True)
class Network:
    """A checkpoint of a run.

    Attributes:
      run: folder of the run.
      params: parameters.
      config: config of the run.
      step: training step.
    """

    run: Path
    params: dict
    config: Config
    step: int


def read(run: str | Path, which: str) -> Network:
    """Reads one network, by its "latest" or "best" checkpoint.

    Raises:
      InputError: the run cannot be used.
    """
    return Network(Path(run), *checkpoints.read_parameters(run, which))


def with_members(
    first: Network, runs: Sequence[str | Path], which: str
) -> list[Network]:
    """Returns a network and the further members of its ensemble.

    Args:
      first: the network.
      runs: folders of the further runs.
      which: "latest" or "best" checkpoint.

    Raises:
      InputError: a run cannot be used, has another model or normalisation, is not
        trained to its last stage, or has the seed of another one.
    """
    networks = [first]
    for run in runs:
        network = read(run, which)
        agreement.require_same_model(network.config, first.config, run)
        for one in (first, network) if len(networks) == 1 else (network,):
            stages = build(one.config.model).stages
            require_trained(one.config.train, one.step, stages, str(one.run))
        _require_other_seed(network, networks)
        networks.append(network)
    return networks


def _require_other_seed(network: Network, networks: list[Network]) -> None:
    for other in networks:
        if network.config.train.seed == other.config.train.seed:
            raise InputError(
                f"{network.run}: has the seed of {other.run} (train.seed="
                f"{network.config.train.seed}), so the two say nothing of what either "
                "does not know. Train the members of an ensemble with different seeds."
            )
        if network.config.data.normalise != other.config.data.normalise:
            raise InputError(
                f"{network.run}: its data.normalise={network.config.data.normalise!r} "
                f"differs from that of {other.run}; train them alike"
            )
