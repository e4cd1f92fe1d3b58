"""Validation: scores of a model in training on people that it is not trained on."""

import contextlib
import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from jax.sharding import Mesh

from kst_jax import parallel
from kst_jax.config import Config
from kst_jax.data.sources import Source
from kst_jax.evaluation.scoring import make_scorer, score_slices
from kst_jax.models.contract import Reconstructor
from kst_jax.patterns import Patterns
from kst_jax.tokens import Batch
from kst_jax.training import held_out


class Validator:
    """Scores parameters on all validation slices; each always has the same mask.

    Args:
      config: config of the run.
      source: validation slices.
      sampler: sampler of their masks.
      model: the network.
    """

    def __init__(
        self, config: Config, source: Source, sampler: Patterns, model: Reconstructor
    ):
        # The test's seed may change when a run resumes; these masks must not.
        masks = dataclasses.replace(config.eval, seed=config.data.split_seed)
        train = config.train
        if train.validation_share:
            train = dataclasses.replace(train, held_out=train.validation_share)
        self._config = dataclasses.replace(config, eval=masks, train=train)
        self._holds_out = config.train.self_supervised
        self._source, self._sampler, self._model = source, sampler, model
        self._mesh = parallel.make_mesh(
            config.eval.batch_size, config.eval.query_devices
        )
        self._scorers: dict[str, Callable] = {}

    def __call__(
        self, params: dict, stage: str, stops: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """Returns mean scores of normalised slices, for a training stage.

        They are PSNR and SSIM, or, with supervision "self", the error of the
        reconstruction at held-out points: always the same ones, and that of the last
        image alone, so that stages can be compared.

        Args:
          params: the parameters to score.
          stage: training stage, up to which the network goes.
          stops: asked after each slice; if it says so, there are no scores (None).
        """
        if stage not in self._scorers:
            make = make_held_out_scorer if self._holds_out else make_scorer
            self._scorers = {stage: make(self._model, self._mesh, stage)}
        slices = score_slices(
            self._source,
            self._config,
            self._sampler,
            self._scorers[stage],
            (parallel.replicate(params, self._mesh),),
            self._mesh,
            "Validating",
            holds_out=self._holds_out,
        )
        scores = []
        with contextlib.closing(slices):
            for _, found in slices:
                if stops():
                    return None
                scores.append(found["scores"]["normalised"]["reconstruction"])
        return {
            f"validation_{name}": float(np.mean([score[name] for score in scores]))
            for name in scores[0]
        }


def make_held_out_scorer(
    model: Reconstructor, mesh: Mesh, stage: str = "RM"
) -> Callable:
    """Compiles a function like `make_scorer`'s, whose score is the held-out error."""
    model = model.clone(query_axis=parallel.QUERY)

    def function(
        members: tuple[dict], batch: Batch, *scaling: jax.Array | None
    ) -> dict:
        del scaling
        (params,) = members
        image = model.reconstruct(params, batch, stage).image
        loss_B = held_out.error(image[None], batch)[0]
        return {"scores": {"normalised": {"reconstruction": {"loss": loss_B}}}}

    return parallel.map_over_devices(
        function,
        mesh,
        in_specs=(parallel.REPLICATED, *[parallel.SHARDED] * 4),
        out_specs=parallel.SHARDED,
    )
