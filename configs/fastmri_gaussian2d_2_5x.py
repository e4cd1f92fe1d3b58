r"""fastMRI, Gaussian 2D sampling at 2.5x, as in the paper; see `configs/paper.py`.

    kst-train --config=fastmri_gaussian2d_2_5x \
        --workdir=runs/fastmri_gaussian2d_2_5x \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper


def get_config() -> ConfigDict:
    """Returns all settings."""
    return paper.get_config("fastmri_gaussian2d_2.5x")
