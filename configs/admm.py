r"""ADMM-CSNet on one of the paper's settings; see `kst_jax/models/admm.py`.

    kst-train --config=admm:fastmri_gaussian2d_5x \
        --workdir=runs/admm \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

Without `:fastmri_gaussian2d_5x`, data and mask are the defaults. Training follows the
authors' PyTorch code: Adam at 2e-3, halved after every twentieth of the training (50 of
1,000 epochs), one slice per step, and as the loss the norm of the error divided by the
norm of the image. (Deep ADMM-Net itself was trained with L-BFGS.) The network has
19,459 parameters; here training learns the logarithm of the penalty. Trained this way,
the network is unstable: in a small study it diverged at Gaussian 2D 2.5x and went
astray at uniform 1D 2.5x. --config.train.clip_norm=1.0 fixed both and improved every
setting it was tried on (docs/study.md). The K-Space Transformer's paper does not say
which variant it compares with or how that variant was trained. It reports (PSNR / SSIM)

                 gaussian2d                                  uniform1d
                 10x           5x            2.5x            5x            2.5x
    OASIS        26.17 .7312   30.41 .8122   33.94 .8513     26.03 .7202   29.95 .8165
    fastMRI      -             29.31 .7515   30.97 .8162     24.43 .6172   29.84 .7838
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper
from kst_jax.models.admm import ADMMConfig


def get_config(setting: str = "") -> ConfigDict:
    """Returns all settings; `setting` may name one of the paper's data and masks."""
    config = paper.compared(setting, ADMMConfig(), batch_size=1)
    config.train.update(
        learning_rate=2e-3,
        schedule="halving",
        error="relative",
        domain="image",
    )
    return config
