r"""A U-Net on the spectrum: the paper's K-UNet; see `kst_jax/models/unet.py`.

    kst-train --config=kunet:fastmri_gaussian2d_5x \
        --workdir=runs/kunet \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

Without `:fastmri_gaussian2d_5x`, data and mask are the defaults. The network is that of
`configs/unet.py`, but maps the zero-filled spectrum to the whole spectrum. The K-Space
Transformer's paper says only that its K-UNet reconstructs in k-space, and that all its
networks use the squared error of images, which equals that in k-space. Optimiser and
rate are fastMRI's. The paper reports (PSNR / SSIM)

                 gaussian2d                                  uniform1d
                 10x           5x            2.5x            5x            2.5x
    OASIS        25.34 .766    28.76 .8427   33.96 .9288     24.53 .7808   26.50 .8483
    fastMRI      -             27.15 .6696   28.90 .7710     24.68 .6058   26.99 .7223
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper
from kst_jax.models.unet import KUNetConfig


def get_config(setting: str = "") -> ConfigDict:
    """Returns all settings; `setting` may name one of the paper's data and masks."""
    config = paper.compared(setting, KUNetConfig())
    config.train.update(
        optimizer="rmsprop", learning_rate=1e-3, schedule="step", domain="image"
    )
    return config
