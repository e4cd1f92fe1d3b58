r"""The paper's comparison on fastMRI knees (Tables 1 and 2); needs that data.

    kst-study --config=studies/paper_fastmri \
        --workdir=runs/paper_fastmri --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

128x128, the paper's four settings, 200 epochs of 7,300 slices (1,460,000 images per
cell). Every method of the paper has its own optimiser as published, if known. The
paper's ablation covers OASIS only. --cells='uniform1d_5x/*' runs a part of the study,
so that several machines can share one folder. For fixed columns at the centre see
configs/studies/paper_oasis.py. Not run yet: the time is unknown.
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper
from kst_jax.configs.studies import protocol


def get_config() -> ConfigDict:
    """Returns the study."""
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
