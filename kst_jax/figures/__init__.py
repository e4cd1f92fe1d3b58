"""Figures, drawn with matplotlib from numpy arrays.

Every function returns a new `matplotlib.figure.Figure`. Without pyplot and its global
state, figures work in notebooks and without a display alike.
"""

from kst_jax.figures.images import (
    AttentionMaps,
    attention_figure,
    coils_figure,
    deviation_figure,
    reconstruction_figure,
    stages_figure,
)
from kst_jax.figures.layout import save
from kst_jax.figures.plots import (
    calibration_figure,
    learning_figure,
    scaling_figure,
)

__all__ = [
    "AttentionMaps",
    "attention_figure",
    "calibration_figure",
    "coils_figure",
    "deviation_figure",
    "learning_figure",
    "reconstruction_figure",
    "save",
    "scaling_figure",
    "stages_figure",
]
