r"""CG-SENSE, linear reconstruction of several coils; see `kst_jax/models/sense.py`.

    kst-train --config=sense:fastmri_uniform1d_5x \
        --workdir=runs/sense \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

Without `:fastmri_uniform1d_5x`, data and mask are the defaults. This baseline is ours;
the K-Space Transformer's paper has none like it. Training chooses the weight of the
image's norm, the only parameter, by the squared error on the training people, as
`configs/tv.py` does. With one coil, the result is the zero-filled image, scaled.
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper
from kst_jax.models.sense import SENSEConfig


def get_config(setting: str = "") -> ConfigDict:
    """Returns all settings; `setting` may name one of the paper's data and masks."""
    config = paper.compared(setting, SENSEConfig())
    config.train.update(
        steps=300, batch_size=8, learning_rate=0.05, domain="image", log_every=10
    )
    return config
