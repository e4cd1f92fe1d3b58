r"""D5C5 on one of the paper's settings; see `kst_jax/models/d5c5.py`.

    kst-train --config=d5c5:fastmri_gaussian2d_5x \
        --workdir=runs/d5c5 \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

Without `:fastmri_gaussian2d_5x`, data and mask are the defaults. As published (arXiv
1704.02422 and its code): He initialisation, Adam at 1e-4, batches of 10, squared error
of the images. We leave out the original's L2 penalty (1e-7): it is too weak to show in
the loss. The K-Space Transformer's paper gives neither the number of features of its
D5C5 (--config.model.features; 32, 64 and 128 give 144,650, 565,770 and 2,237,450
parameters) nor how it was trained. It reports (PSNR / SSIM)

                 gaussian2d                                  uniform1d
                 10x           5x            2.5x            5x            2.5x
    OASIS        30.51 .9241   35.91 .9743   42.72 .9927     27.66 .8895   32.48 .9615
    fastMRI      -             29.78 .7507   32.00 .8399     26.87 .6793   30.64 .8126
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper
from kst_jax.models.d5c5 import D5C5Config


def get_config(setting: str = "") -> ConfigDict:
    """Returns all settings; `setting` may name one of the paper's data and masks."""
    config = paper.compared(setting, D5C5Config(), batch_size=10)
    config.train.update(learning_rate=1e-4, schedule="constant", domain="image")
    return config
