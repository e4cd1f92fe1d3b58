r"""E2E-VarNet on one of the paper's settings; see `kst_jax/models/varnet.py`.

    kst-train --config=varnet:fastmri_uniform1d_5x \
        --workdir=runs/varnet \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

Without `:fastmri_uniform1d_5x`, data and mask are the defaults. As published (arXiv
2004.06688 and its code): 12 cascades of U-Nets with 18 channels and 4 poolings
(29,936,966 parameters with the network for sensitivity maps of several coils,
29,452,068 without it, as with one coil), 1 - SSIM of the magnitudes with the volume's
maximum as data range, Adam at 1e-3, at 1e-4 for the last fifth of 50 epochs, batches of
one. The number of steps is the K-Space Transformer's at a quarter of its batch, so that
both see as many slices. The K-Space Transformer's paper does not compare with this
network, and it has not been trained at this size here yet.

Unlike the paper's settings, this scales slices by what was measured: a mean subtracted
would change magnitudes.
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper
from kst_jax.models.varnet import VarNetConfig


def get_config(setting: str = "") -> ConfigDict:
    """Returns all settings; `setting` may name one of the paper's data and masks."""
    config = paper.compared(setting, VarNetConfig(), batch_size=1)
    config.data.normalise = "measured"
    config.train.update(
        learning_rate=1e-3, schedule="step", error="ssim", domain="image"
    )
    return config
