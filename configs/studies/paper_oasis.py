r"""The paper's comparison on OASIS (Tables 1 to 3); needs that data and a GPU.

    find /data/oasis -name '*T1w.nii.gz' -exec gunzip {} +
    kst-study --config=studies/paper_oasis \
        --workdir=runs/paper_oasis "--config.data.train=/data/oasis/**/*T1w.nii"

128x128, five settings, 200 epochs of 44,600 slices (8,920,000 images per cell). Every
method of the paper has its own optimiser as published, if known.
--cells='uniform1d_5x/*' runs a part of the study, so that several machines can share
one folder. Uniform 1D has no fixed columns at the centre, since the paper mentions
none; --config.settings.uniform1d_5x.calibration=5, and the same for uniform1d_2_5x,
fixes five. Not run yet: the time is unknown.
"""

from ml_collections import ConfigDict

from kst_jax.configs import paper
from kst_jax.configs.studies import protocol


def get_config() -> ConfigDict:
    """Returns the study."""
    run = paper.get_config("oasis_gaussian2d_5x")
    study = protocol.study(
        protocol.settings(calibration=0),
        protocol.compared(),
        images=run.train.steps * run.train.batch_size,
    )
    study.data.update(run.data)
    return study
