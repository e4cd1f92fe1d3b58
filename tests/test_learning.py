"""A short training makes a network better than no network."""

import dataclasses

import pytest

from kst_jax.config import TrainConfig
from kst_jax.eval_config import EvalConfig
from kst_jax.evaluation.evaluate import evaluate
from kst_jax.mask_config import MaskConfig
from kst_jax.models.d5c5 import D5C5Config
from kst_jax.training.loop import train
from tests.test_training import TINY


@pytest.mark.slow
def test_a_trained_network_beats_zero_filling(tmp_path):
    """On a person that it was not trained on, at the same masks."""
    config = dataclasses.replace(
        TINY,
        data=dataclasses.replace(TINY.data, size=(32, 32), slices=(0.3, 0.7)),
        mask=MaskConfig(kind="uniform_1d", acceleration=3.0),
        model=D5C5Config(cascades=2, layers=3, features=8),
        train=TrainConfig(
            steps=40, batch_size=8, learning_rate=3e-3, warmup_steps=5, image_every=0
        ),
        eval=EvalConfig(batch_size=8, figures=0),
    )
    train(config, tmp_path)
    scores = evaluate(config, tmp_path)["slices"]["normalised"]
    gain = {
        metric: scores["reconstruction"][metric]["mean"]
        - scores["zero_filled"][metric]["mean"]
        for metric in ("psnr", "ssim")
    }
    assert gain["psnr"] > 1.5
    assert gain["ssim"] > 0.1
