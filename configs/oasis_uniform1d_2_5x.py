r"""OASIS, uniform 1D sampling at 2.5x, as in the paper; see `configs/paper.py`.

    kst-train --config=oasis_uniform1d_2_5x \
        --workdir=runs/oasis_uniform1d_2_5x \
        '--config.data.train=/data/oasis/**/*T1w.nii.gz'
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper


def get_config() -> ConfigDict:
    """Returns all settings."""
    return paper.get_config("oasis_uniform1d_2.5x")
