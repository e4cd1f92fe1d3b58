r"""The paper's network with every other setting at its default.

A starting point for your own configs: import it and change what differs.
`kst_jax/config.py` explains each setting, `kst_jax/models/config.py` the model's.

    kst-train --config=default --workdir=runs/mine \
        --config.data.train=/data/train --config.data.test=/data/test
"""

from ml_collections import ConfigDict

from kst_jax.config import Config
from kst_jax.config_dict import as_config_dict


def get_config() -> ConfigDict:
    """Returns all settings."""
    return as_config_dict(Config())
