r"""Compressed sensing with total variation; see `kst_jax/models/tv.py`.

    kst-train --config=tv:fastmri_gaussian2d_5x \
        --workdir=runs/tv \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

Without `:fastmri_gaussian2d_5x`, data and mask are the defaults. This baseline is ours;
the K-Space Transformer's paper has none like it. Training chooses the weight of the
total variation, the only parameter, by the squared error on the training people. Adam
moves its logarithm by at most about 0.05 per step, and 300 steps of 8 slices go far
enough from any sensible start.
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper
from kst_jax.models.tv import TVConfig


def get_config(setting: str = "") -> ConfigDict:
    """Returns all settings; `setting` may name one of the paper's data and masks."""
    config = paper.compared(setting, TVConfig())
    config.train.update(
        steps=300, batch_size=8, learning_rate=0.05, domain="image", log_every=10
    )
    return config
