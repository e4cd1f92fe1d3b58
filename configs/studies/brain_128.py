r"""The shipped network at 128x128, beside its twin and D5C5 in the same time.

    kst-download .
    kst-study --config=studies/brain_128 --workdir=runs/brain_128

The four people of `configs/studies/small.py` at 1.5 mm, in the same roles: three train
the networks, sub-0042 tests them. Uniform 1D sampling at 5x keeps 25 of 128 columns, 5
of them fixed at the centre. All slices get a random phase, because networks trained
without one fail on measured scans (docs/training.md).

The first row is `configs/kst_plus.py` with a width of 48 and a low-resolution grid of a
quarter of the image in each direction. The others train for about as long on one core,
so they see other numbers of images.
"""

from ml_collections import ConfigDict

from kst_jax.configs import d5c5, default, kst_plus
from kst_jax.configs.studies import protocol, small

_SETTING = "uniform1d_5x"
_IMAGES = 6_000
# Processor seconds an image on a core of an Intel Xeon, by --clock=3: the first row's
# 1.51 over those of the others.
_TWIN, _D5C5 = 1.51 / 1.16, 1.51 / 0.90


def get_config() -> ConfigDict:
    """Returns the study."""
    config, methods = default.get_config(), _methods()
    config.data.update(small.BRAINS, size=(128, 128))
    config.data.augment.update(
        flip_columns=True, rotation=10.0, scaling=0.1, intensity=0.2
    )
    settings = {_SETTING: protocol.settings(calibration=5)[_SETTING]}
    tables = {"128x128: uniform 1D sampling": protocol.table(settings, methods)}
    return protocol.define(
        config, settings, methods, tables, images=_IMAGES, references=("kst_plus",)
    )


def _methods() -> dict[str, dict]:
    """Returns the rows by name."""
    config, rival = kst_plus.get_config(), d5c5.get_config()
    config.model.update(small.NETWORK | small.WIDE_REFINEMENT)
    config.model.update(patch=(4, 1), lr_size=(32, 32))
    rival.train.update(small.TUNED_D5C5)
    for network in (config, rival):
        network.train.update(checkpoint_every=100, image_every=0)
    plus = protocol.method(config, title=kst_plus.TITLE)
    return {
        "kst_plus": plus,
        "kst_twin": {
            **protocol.changed(plus, kst_plus.TWIN, {"transformer": False}),
            "images": _images(_TWIN),
        },
        "d5c5_tuned": protocol.method(
            rival, title="D5C5, rate chosen by search", images=_images(_D5C5)
        ),
    }


def _images(times: float) -> int:
    """Returns so many times the first row's images, to the nearest hundred."""
    return round(times * _IMAGES / 100) * 100
