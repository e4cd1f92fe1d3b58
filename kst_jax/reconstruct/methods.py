"""What reconstructs: a trained network, or a method that needs no training."""

import dataclasses
from pathlib import Path

import jax
import numpy as np

from kst_jax import tokens
from kst_jax.config import Config
from kst_jax.mask_config import MaskConfig
from kst_jax.models.config import ModelConfig
from kst_jax.models.registry import build
from kst_jax.models.sense import SENSEConfig
from kst_jax.runs import checkpoints, fields_of_view
from kst_jax.stages import require_trained

# By the name that takes the place of a run's folder.
UNTRAINED: dict[str, ModelConfig] = {"sense": SENSEConfig()}


@dataclasses.dataclass(frozen=True)
class Method:
    """A reconstructor with its parameters.

    Attributes:
      name: folder of the run, or the method's name.
      config: config of the run; default settings without a run.
      params: parameters.
      step: training step; None without training.
      fields: fields of view in mm of the training images, as far as they are known.
    """

    name: str
    config: Config
    params: dict
    step: int | None
    fields: list[fields_of_view.Field]


def open_method(run: str | Path, checkpoint: str) -> Method:
    """Reads a run, or takes a method by its name.

    Args:
      run: folder of a run, or a key of UNTRAINED.
      checkpoint: "latest" or "best" of the run.

    Raises:
      InputError: the run cannot be used.
    """
    if str(run) in UNTRAINED and not Path(run).is_dir():
        return _untrained(str(run))
    params, config, step = checkpoints.read_parameters(run, checkpoint)
    require_trained(config.train, step, build(config.model).stages, str(run))
    name = str(Path(run).absolute())
    return Method(name, config, params, step, fields_of_view.read(run))


def _untrained(name: str) -> Method:
    # The mask is for a try on fully sampled scans.
    config = Config(model=UNTRAINED[name], mask=MaskConfig(kind="fastmri_random"))
    shape = config.data.size
    example = tokens.tokenise(np.zeros((*shape, 2), np.float32), np.ones(shape, bool))
    model = build(config.model)
    params = model.init(jax.random.key(0), tokens.batch_of([example]))["params"]
    return Method(name, config, params, None, [])
