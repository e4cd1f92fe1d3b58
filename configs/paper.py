r"""The paper's datasets and undersampling; the argument names one of each.

    kst-train --config=paper:fastmri_gaussian2d_5x --workdir=runs/x \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

Datasets: oasis, fastmri. Undersampling: gaussian2d_10x, gaussian2d_5x, gaussian2d_2.5x,
uniform1d_5x, uniform1d_2.5x. Each also has a file of its own, such as
`configs/fastmri_gaussian2d_5x.py`.

Unpack OASIS first with `gunzip`; otherwise a whole volume is decoded again for each
slice (docs/data.md). The pattern '/data/oasis/**/*T1w.nii' leaves label maps out.

Steps: 200 epochs at batch 4, as published. OASIS: 10 % of the 175 slices of three
quarters of 3,398 volumes are about 44,600 slices, or 2,230,000 steps. fastMRI: 25 % of
973 volumes of about 35 slices, without the first 5, are about 7,300 slices, or 365,000
steps. The epochs are only roughly 200: fractions are rounded in each volume, and OASIS
slices are axial and drawn from those that are not empty (`data.min_foreground`), which
the paper does not mention. It reports (PSNR / SSIM; nothing for fastMRI at 10x)

                 gaussian2d                                  uniform1d
                 10x           5x            2.5x            5x            2.5x
    OASIS        32.58 .9529   37.47 .9823   43.68 .9946     31.50 .9528   36.32 .9848
    fastMRI      -             29.88 .7534   31.97 .8389     27.80 .7078   31.04 .8189

None of these has been reproduced with this library yet.
"""

import dataclasses

from ml_collections import ConfigDict

from kst_jax.configs import default
from kst_jax.errors import InputError
from kst_jax.models.config import ModelConfig

_DATASETS = {
    "oasis": {"fraction": 0.10},
    "fastmri": {"fraction": 0.25, "drop_first": 5},
}
_STEPS = {"oasis": 2_230_000, "fastmri": 365_000}
_MASKS = {"gaussian2d": "gaussian_2d", "uniform1d": "uniform_1d"}
_SETTINGS = (
    "gaussian2d_10x",
    "gaussian2d_5x",
    "gaussian2d_2.5x",
    "uniform1d_5x",
    "uniform1d_2.5x",
)


def get_config(name: str = "") -> ConfigDict:
    """Returns one of the paper's settings, such as "oasis_uniform1d_5x"."""
    dataset, _, setting = name.partition("_")
    if dataset not in _DATASETS or setting not in _SETTINGS:
        raise InputError(
            f"--config=paper:{name}: unknown setting; join one of "
            f"{', '.join(_DATASETS)} and one of {', '.join(_SETTINGS)} by _"
        )
    kind, acceleration = setting.removesuffix("x").split("_")
    config = default.get_config()
    config.data.update(_DATASETS[dataset], normalise="target")
    config.data.augment.phase = 0.0
    config.mask.update(kind=_MASKS[kind], acceleration=float(acceleration))
    config.train.steps = _STEPS[dataset]
    return config


def compared(setting: str, model: ModelConfig, batch_size: int = 4) -> ConfigDict:
    """Returns another network on one of the paper's settings, or the default if "".

    At any batch size it trains on as many slices as the K-Space Transformer.
    """
    config = get_config(setting) if setting else default.get_config()
    config.model = ConfigDict(dataclasses.asdict(model))
    slices = config.train.steps * config.train.batch_size
    config.train.update(batch_size=batch_size, steps=slices // batch_size)
    return config
