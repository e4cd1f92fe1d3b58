r"""fastMRI's single-coil knees by fastMRI's own protocol; argument: 4x, 8x or none.

    kst-train --config=fastmri_knee:4x --workdir=runs/knee_4x \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val
    kst-eval --config=fastmri_knee:4x --workdir=runs/knee_4x \
        --config.data.test=/data/singlecoil_val
    kst-reconstruct runs/knee_4x /data/singlecoil_test runs/knee_4x/submission

Random masks at the measured width, 4x with 8 % of the columns in the centre or 8x with
4 %; without an argument each slice draws one of the two. Targets are
`reconstruction_esc`, 320x320. Scores beside published ones: docs/evaluation.md. The
files `fastmri_knee_4x` and `fastmri_knee_8x` are the same.

The network is that of `configs/kst_plus.py` in bfloat16, with tokens of four points
along the readout: a slice at 4x then takes 0.8 TFLOP instead of 7.6. It has not been
trained at this size yet, so the number of steps is a guess: about 23 visits to each of
the 34,742 training slices.
"""

from ml_collections import ConfigDict

from kst_jax.configs import kst_plus
from kst_jax.errors import InputError

_MASKS = {
    "4x": {"acceleration": 4.0, "center_fraction": 0.08},
    "8x": {"acceleration": 8.0, "center_fraction": 0.04},
    "": {"acceleration": (4.0, 8.0), "center_fraction": (0.08, 0.04)},
}


def get_config(acceleration: str = "") -> ConfigDict:
    """Returns all settings for an acceleration, or for both."""
    if acceleration not in _MASKS:
        raise InputError(
            f"--config=fastmri_knee:{acceleration}: unknown acceleration; use 4x, 8x "
            "or fastmri_knee alone"
        )
    config = kst_plus.get_config()
    config.data.update(native=True, size=(320, 368))
    config.mask.update(kind="fastmri_random", **_MASKS[acceleration])
    config.model.update(lr_size=(64, 64), patch=(4, 1), dtype="bfloat16")
    config.train.update(steps=200_000, batch_size=4, ema=0.999, checkpoint_every=5000)
    return config
