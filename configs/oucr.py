r"""OUCR on one of the paper's settings; see `kst_jax/models/oucr.py`.

    kst-train --config=oucr:fastmri_gaussian2d_5x \
        --workdir=runs/oucr \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

Without `:fastmri_gaussian2d_5x`, data and mask are the defaults. Published (arXiv
2106.08886): two recurrent branches of 5 iterations, about 1.2 million parameters (here
1,193,702). The network is re-derived from that description. We could not confirm how it
was trained, so optimiser, rate, schedule and batch are the K-Space Transformer's, and
the loss is the squared error of images, which the K-Space Transformer's paper uses for
all its networks. That paper reports (PSNR / SSIM)

                 gaussian2d                                  uniform1d
                 10x           5x            2.5x            5x            2.5x
    OASIS        31.61 .9442   36.78 .9797   42.80 .9933     29.52 .9310   33.75 .9709
    fastMRI      -             29.95 .7522   32.04 .8382     27.71 .7009   30.95 .8168
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper
from kst_jax.models.oucr import OUCRConfig


def get_config(setting: str = "") -> ConfigDict:
    """Returns all settings; `setting` may name one of the paper's data and masks."""
    config = paper.compared(setting, OUCRConfig())
    config.train.domain = "image"
    return config
