r"""How uncertain images are at 48x48: ensembles of seeds and predicted deviations.

    kst-download .
    kst-study --config=studies/uncertainty --workdir=runs/uncertainty

Uniform 1D sampling at 5x: 9 of 48 columns, 2 of them fixed at the centre. Two people of
`configs/studies/small.py` train the networks, with a random phase, one calibrates the
intervals and the fourth tests them. Each of three seeds sees 4,000 images. The network
is `configs/kst_plus.py` with 64 channels in its refinement, and also predicts the
standard deviation of its image (`model.deviation`).

The study trains the networks and scores their images. docs/study.md ("Uncertainty") has
the commands that calibrate and test the intervals.
"""

from ml_collections import ConfigDict

from kst_jax.configs import default, kst_plus
from kst_jax.configs.studies import protocol, small

_SETTING = "uniform1d_5x"
_TITLE = f"{kst_plus.TITLE}, with deviations"


def get_config() -> ConfigDict:
    """Returns the study."""
    config, methods = default.get_config(), _methods()
    config.data.update(small.BRAINS, train="colin27_t1w.nii.gz,s1_t1w.nii.gz")
    config.data.augment.update(
        flip_columns=True, rotation=10.0, scaling=0.1, intensity=0.2
    )
    settings = {_SETTING: protocol.settings(calibration=2)[_SETTING]}
    tables = {"Networks that predict deviations": protocol.table(settings, methods)}
    return protocol.define(
        config,
        settings,
        methods,
        tables,
        images=4_000,
        seeds=(0, 1, 2),
        references=("deviation",),
    )


def _methods() -> dict[str, dict]:
    """Returns the row by name."""
    config = kst_plus.get_config()
    config.model.update(small.NETWORK | small.WIDE_REFINEMENT, patch=(4, 1))
    config.train.update(checkpoint_every=250, image_every=0)
    config.model.deviation = True
    return {"deviation": protocol.method(config, title=_TITLE)}
