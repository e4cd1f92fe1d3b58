r"""OASIS, Gaussian 2D sampling at 10x, as in the paper; see `configs/paper.py`.

    kst-train --config=oasis_gaussian2d_10x \
        --workdir=runs/oasis_gaussian2d_10x \
        '--config.data.train=/data/oasis/**/*T1w.nii.gz'
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper


def get_config() -> ConfigDict:
    """Returns all settings."""
    return paper.get_config("oasis_gaussian2d_10x")
