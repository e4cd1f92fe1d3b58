r"""The config that a run was trained with, read from its folder.

    kst-eval --config=saved:runs/demo --workdir=runs/demo \
        --config.data.test=/data/other_scans
"""

from ml_collections import ConfigDict

from kst_jax.config_dict import as_config_dict
from kst_jax.errors import InputError
from kst_jax.runs.checkpoints import read_config


def get_config(workdir: str = "") -> ConfigDict:
    """Returns all settings of the run in `workdir`."""
    if not workdir:
        raise InputError(
            "--config=saved needs the folder of a run, as in --config=saved:runs/demo"
        )
    return as_config_dict(read_config(workdir))
