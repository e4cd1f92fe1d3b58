r"""fastMRI, Gaussian 2D sampling at 10x; the paper reports no scores for it.

    kst-train --config=fastmri_gaussian2d_10x \
        --workdir=runs/fastmri_gaussian2d_10x \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper


def get_config() -> ConfigDict:
    """Returns all settings."""
    return paper.get_config("fastmri_gaussian2d_10x")
