r"""The paper's comparison on OASIS (Tables 1 to 3), for whoever holds it and a GPU.

    python -m kst_jax.data.prepare '/data/oasis/**/*T1w.nii.gz' /data/oasis_prepared
    kst-study --config=studies/paper_oasis \
        --workdir=runs/paper_oasis --config.data.train=/data/oasis_prepared

128x128, five settings, 200 epochs of 44,600 slices (8,920,000 images a cell), every
method of the paper with its own optimiser as published, where that is known.
--cells='uniform1d_5x/*' does a part of it, so that several machines can share one
folder. Uniform 1D fixes no columns at the centre, of which the paper tells nothing;
five are fixed by
--config.settings.uniform1d_5x.calibration=5 and the same for uniform1d_2_5x. Not run
yet: the time is unknown.
"""

from kst_jax.configs.studies import protocol
from ml_collections import ConfigDict

from kst_jax.configs import paper


def get_config() -> ConfigDict:
    """The study."""
    run = paper.get_config("oasis_gaussian2d_5x")
    study = protocol.study(
        protocol.settings(calibration=0),
        protocol.compared(),
        images=run.train.steps * run.train.batch_size,
    )
    study.data.update(run.data)
    return study
