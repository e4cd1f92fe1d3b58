r"""The paper's comparison on fastMRI knees (Tables 1 and 2), for whoever holds them.

    kst-study --config=studies/paper_fastmri \
        --workdir=runs/paper_fastmri --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

128x128, the paper's four settings, 200 epochs of 7,300 slices (1,460,000 images a
cell), every method of the paper with its own optimiser as published, where that is
known. The paper's ablation is of OASIS alone. --cells='uniform1d_5x/*' does a part of
it, so that several machines can share one folder. Fixed columns at the centre: see
configs/studies/paper_oasis.py. Not run yet: the time is unknown.
"""

from kst_jax.configs.studies import protocol
from ml_collections import ConfigDict

from kst_jax.configs import paper


def get_config() -> ConfigDict:
    """The study."""
    run = paper.get_config("fastmri_gaussian2d_5x")
    settings = protocol.settings(calibration=0)
    del settings["gaussian2d_10x"]
    study = protocol.study(
        settings,
        protocol.compared(),
        images=run.train.steps * run.train.batch_size,
    )
    study.data.update(run.data)
    del study.tables[protocol.ABLATION]
    return study
