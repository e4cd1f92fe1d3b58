r"""fastMRI's U-Net on one of the paper's settings; see `kst_jax/models/unet.py`.

    kst-train --config=unet:fastmri_gaussian2d_5x \
        --workdir=runs/unet \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

Without `:fastmri_gaussian2d_5x`, data and mask are the defaults. As in fastMRI (arXiv
1811.08839 and its code): 32 channels and 4 poolings (7,756,418 parameters), RMSprop at
1e-3, at 1e-4 for the last fifth of training, absolute error of the images. fastMRI's
images are magnitudes; here they have real and imaginary parts. The batch of 4 is the
K-Space Transformer's. Its paper does not say how its U-Net was built or trained. It
reports (PSNR / SSIM)

                 gaussian2d                                  uniform1d
                 10x           5x            2.5x            5x            2.5x
    OASIS        27.63 .8437   31.27 .9024   35.02 .9388     27.53 .8895   29.05 .8988
    fastMRI      -             28.33 .7120   31.35 .8283     26.72 .6835   29.81 .7983
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper
from kst_jax.models.unet import UNetConfig


def get_config(setting: str = "") -> ConfigDict:
    """Returns all settings; `setting` may name one of the paper's data and masks."""
    config = paper.compared(setting, UNetConfig())
    config.train.update(
        optimizer="rmsprop",
        learning_rate=1e-3,
        schedule="step",
        error="absolute",
        domain="image",
    )
    return config
