r"""fastMRI's single-coil knees at 4x, its own protocol; see `configs/fastmri_knee.py`.

    kst-train --config=fastmri_knee_4x --workdir=runs/knee_4x \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val
"""

from ml_collections import ConfigDict

from kst_jax.configs import fastmri_knee


def get_config() -> ConfigDict:
    """Returns all settings."""
    return fastmri_knee.get_config("4x")
