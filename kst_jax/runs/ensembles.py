"""Reads the networks of an ensemble: runs that differ in their seed."""

import dataclasses
import functools
import hashlib
from collections.abc import Sequence
from pathlib import Path

import jax
import numpy as np

from kst_jax.config import Config
from kst_jax.errors import InputError
from kst_jax.models.registry import build
from kst_jax.programs import files
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

    @functools.cached_property
    def fingerprint(self) -> str:
        """A checksum of the parameters."""
        digest = hashlib.sha256()
        for path, leaf in jax.tree_util.tree_leaves_with_path(self.params):
            digest.update(jax.tree_util.keystr(path).encode())
            digest.update(np.asarray(leaf).tobytes())
        return digest.hexdigest()


def read(run: str | Path, which: str) -> Network:
    """Reads one network, by its "latest" or "best" checkpoint.

    Raises:
      InputError: the run cannot be used.
    """
    return Network(files.local_folder(run), *checkpoints.read_parameters(run, which))


def with_members(
    first: Network, runs: Sequence[str | Path], which: str
) -> list[Network]:
    """Returns a network and the further members of its ensemble.

    Args:
      first: the network.
      runs: folders of the further runs.
      which: "latest" or "best" checkpoint.

    Raises:
      InputError: a run cannot be used, differs from the first one in more than the seed
        or in nothing, or is not trained to its last stage; or images of such networks
        cannot be averaged.
    """
    networks = [first]
    for run in runs:
        network = read(run, which)
        agreement.require_member(network.config, first.config, network.run, first.run)
        _require_other_seed(network, networks)
        networks.append(network)
    if runs:
        _require_averages(first)
        for one in networks:
            stages = build(one.config.model).stages
            require_trained(one.config.train, one.step, stages, str(one.run))
    return networks


def _require_other_seed(network: Network, networks: list[Network]) -> None:
    for other in networks:
        if network.config.train.seed == other.config.train.seed:
            raise InputError(
                f"{network.run}: has the seed of {other.run} (train.seed="
                f"{network.config.train.seed}), so nothing sets the two apart. Train "
                "the members of an ensemble with different seeds."
            )


def _require_averages(network: Network) -> None:
    """Raises InputError if the mean of complex images makes no sense."""
    config = network.config
    if config.train.error == "ssim":
        raise InputError(
            f"{network.run}: was trained to match magnitudes (train.error='ssim'), so "
            "the phases of several such networks need not agree, and their images "
            "cannot be averaged. Use one network."
        )
    if config.data.normalise != "measured":
        raise InputError(
            f"{network.run}: was trained with data.normalise="
            f"{config.data.normalise!r}, which changes magnitudes; an ensemble needs "
            "networks trained with 'measured'"
        )
