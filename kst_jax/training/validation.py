"""Validation: scores of a model in training on people that it is not trained on."""

import contextlib
import dataclasses
from collections.abc import Callable

import numpy as np

from kst_jax import parallel
from kst_jax.config import Config
from kst_jax.data.sources import Source
from kst_jax.evaluation.scoring import make_scorer, score_slices
from kst_jax.models.contract import Reconstructor
from kst_jax.sampling import Sampler


class Validator:
    """Scores parameters on all validation slices; each always has the same mask.

    Args:
      config: config of the run.
      source: validation slices.
      sampler: sampler of their masks.
      model: the network.
    """

    def __init__(
        self, config: Config, source: Source, sampler: Sampler, model: Reconstructor
    ):
        # The test's seed may change when a run resumes; these masks must not.
        masks = dataclasses.replace(config.eval, seed=config.data.split_seed)
        self._config = dataclasses.replace(config, eval=masks)
        self._source, self._sampler, self._model = source, sampler, model
        self._mesh = parallel.make_mesh(
            config.eval.batch_size, config.eval.query_devices
        )
        self._scorers: dict[str, Callable] = {}

    def __call__(
        self, params: dict, stage: str, stops: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Returns mean PSNR and SSIM of normalised slices, for a training stage.

        Args:
          params: the parameters to score.
          stage: training stage, up to which the network goes.
          stops: asked after each slice; if it says so, there are no scores (None).
        """
        if stage not in self._scorers:
            scorer = make_scorer(self._model, self._mesh, stage)
            self._scorers = {stage: scorer}
        slices = score_slices(
            self._source,
            self._config,
            self._sampler,
            self._scorers[stage],
            parallel.replicate(params, self._mesh),
            self._mesh,
            "Validating",
        )
        scores = []
        with contextlib.closing(slices):
            for _, found in slices:
                if stops():
                    return None
                scores.append(found["scores"]["normalised"]["reconstruction"])
        return {
            f"validation_{name}": float(np.mean([score[name] for score in scores]))
            for name in ("psnr", "ssim")
        }
