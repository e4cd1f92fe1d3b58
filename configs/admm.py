r"""ADMM-CSNet on one of the paper's settings; see `kst_jax/models/admm.py`.

    kst-train --config=admm:fastmri_gaussian2d_5x \
        --workdir=runs/admm \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

Without `:fastmri_gaussian2d_5x` data and mask are the defaults. As its authors
published it for PyTorch: Adam at 2e-3, halved after every twentieth of the training (50
of 1,000 epochs), one slice at a time, the norm of the error over that of the image.
(Deep ADMM-Net itself was trained by L-BFGS.) 19,459 parameters, of which the penalty is
learnt as a logarithm here. So trained it is unstable: in a small study it diverged at
Gaussian 2D 2.5x and went astray at uniform 1D 2.5x. --config.train.clip_norm=1.0 mended
both, and it was better with it wherever that was tried (docs/study.md). The K-Space
Transformer's paper says neither which variant it compares with nor how it was trained,
and reports (PSNR / SSIM)

                 gaussian2d                                  uniform1d
                 10x           5x            2.5x            5x            2.5x
    OASIS        26.17 .7312   30.41 .8122   33.94 .8513     26.03 .7202   29.95 .8165
    fastMRI      -             29.31 .7515   30.97 .8162     24.43 .6172   29.84 .7838
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper
from kst_jax.models.admm import ADMMConfig


def get_config(setting: str = "") -> ConfigDict:
    """All settings, with data and mask of one of the paper's where it is named."""
    config = paper.compared(setting, ADMMConfig(), batch_size=1)
    config.train.update(
        learning_rate=2e-3,
        schedule="halving",
        error="relative",
        domain="image",
    )
    return config
