r"""Samples off the grid at 48x48: spokes, and single points, against gridding and CG.

    pip install 'kst-jax[nufft]'
    kst-download .
    kst-study --config=studies/non_cartesian --workdir=runs/non_cartesian

The people of `configs/studies/small.py`, with a random phase: 9 spokes of 96 samples at
a random angle, as long as a Cartesian scan of 9 of 48 columns; and as many points as
Gaussian 2D sampling has at 5x, drawn from its distribution but off the grid. Each row
sees 6,000 images. The network is `configs/kst_plus.py` with 64 channels in its
refinement. A token is four neighbouring samples of a spoke, or a single point, and a
query is a patch of 2x2 points of the grid.

CG is `configs/sense.py` with one coil: the damped least-squares image, its weight
chosen by training. The U-Net sees the gridded image.
"""

from ml_collections import ConfigDict

from kst_jax.configs import default, kst_plus, sense, unet
from kst_jax.configs.studies import protocol, small

_SETTINGS = {
    "radial_5x": {"kind": "radial", "acceleration": 5.0},
    "points_5x": {"kind": "gaussian_points", "acceleration": 5.0},
}


def get_config() -> ConfigDict:
    """Returns the study."""
    config, methods = default.get_config(), _methods()
    config.data.update(small.BRAINS)
    config.data.augment.update(
        flip_columns=True, rotation=10.0, scaling=0.1, intensity=0.2
    )
    return protocol.define(
        config,
        _SETTINGS,
        methods,
        {"Off the grid": protocol.table(_SETTINGS, methods)},
        images=6_000,
        references=("kst", "twin"),
    )


def _methods() -> dict[str, dict]:
    """Returns the rows by name."""
    config = kst_plus.get_config()
    config.model.update(small.NETWORK | small.WIDE_REFINEMENT, patch=(2, 2))
    config.train.update(checkpoint_every=250, image_every=0)
    network = protocol.method(config, title=kst_plus.TITLE)
    weight = sense.get_config()
    rows = {
        "cg": protocol.method(weight, images=2_400, title="Conjugate gradients"),
        "unet": protocol.method(unet.get_config()),
        "kst": network,
        "twin": protocol.changed(network, kst_plus.TWIN, {"transformer": False}),
    }
    for row in rows.values():
        row["train"] |= {"checkpoint_every": 250, "image_every": 0}
    return rows
