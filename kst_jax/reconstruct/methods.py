"""What reconstructs: a trained network, or a method that needs no training."""

import dataclasses
import sys
from pathlib import Path

import jax
import numpy as np

from kst_jax import tokens
from kst_jax.config import Config
from kst_jax.errors import InputError
from kst_jax.mask_config import MaskConfig
from kst_jax.models.config import ModelConfig
from kst_jax.models.registry import build
from kst_jax.models.sense import SENSEConfig
from kst_jax.runs import calibration, ensembles, fields_of_view
from kst_jax.runs.calibration import Calibration
from kst_jax.stages import require_trained

# By the name that takes the place of a run's folder.
UNTRAINED: dict[str, ModelConfig] = {"sense": SENSEConfig()}


@dataclasses.dataclass(frozen=True)
class Method:
    """A reconstructor with its parameters.

    Attributes:
      name: folder of the run, or the method's name.
      config: config of the run; default settings without a run.
      members: parameters of the network, or of the members of an ensemble.
      step: training step; None without training.
      fields: fields of view in mm of the training images, as far as they are known.
      calibration: of the deviations of its images; None if they are not wanted.
      fingerprints: of the parameters of the network, or of each member; none without
        training.
    """

    name: str
    config: Config
    members: tuple[dict, ...]
    step: int | None
    fields: list[fields_of_view.Field]
    calibration: Calibration | None = None
    fingerprints: tuple[str, ...] = ()


def open_method(
    run: str | Path, checkpoint: str, uncertainty: Path | None = None
) -> Method:
    """Reads a run, or takes a method by its name.

    Args:
      run: folder of a run, or a key of UNTRAINED.
      checkpoint: "latest" or "best" of the run.
      uncertainty: folder of the evaluation that calibrates deviations; None if they
        are not wanted. The further members of an ensemble are those that it names.

    Raises:
      InputError: the run or the calibration cannot be used.
    """
    if str(run) in UNTRAINED and not Path(run).is_dir():
        if uncertainty is not None:
            raise InputError(
                f"--uncertainty: {run} predicts no deviations; use a trained network"
            )
        return _untrained(str(run))
    first = ensembles.read(run, checkpoint)
    config, step = first.config, first.step
    require_trained(config.train, step, build(config.model).stages, str(run))
    networks, found = [first], None
    if uncertainty is not None:
        found = calibration.read(uncertainty)
        networks = ensembles.with_members(first, found.other_runs(first), checkpoint)
        found.require_networks(networks)
        found.warn_of(config.mask)
        print(f"note: {found.worth}", file=sys.stderr)
    return Method(
        str(first.run),
        config,
        tuple(one.params for one in networks),
        step,
        fields_of_view.read(run),
        found,
        tuple(one.fingerprint for one in networks),
    )


def _untrained(name: str) -> Method:
    # The mask is for a try on fully sampled scans.
    config = Config(model=UNTRAINED[name], mask=MaskConfig(kind="fastmri_random"))
    shape = config.data.size
    example = tokens.tokenise(np.zeros((*shape, 2), np.float32), np.ones(shape, bool))
    model = build(config.model)
    params = model.init(jax.random.key(0), tokens.batch_of([example]))["params"]
    return Method(name, config, (params,), None, [])
