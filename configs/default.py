r"""The paper's network with every other setting at its default.

A starting point for your own configs: import it and change what differs.
`kst_jax/config.py` explains each setting, `kst_jax/models/config.py` the model's.

Scans simulated from magnitudes get a random phase (`data.augment.phase`). Networks
trained without one fail on measured scans (docs/training.md).

    kst-train --config=default --workdir=runs/mine \
        --config.data.train=/data/train --config.data.test=/data/test
"""

from ml_collections import ConfigDict

from kst_jax.config import Config
from kst_jax.config_dict import as_config_dict


def get_config() -> ConfigDict:
    """Returns all settings."""
    config = as_config_dict(Config())
    config.data.augment.phase = 1.0
    return config
