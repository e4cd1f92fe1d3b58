r"""What attention gives at 128x128, where aliasing reaches beyond the refinement.

    kst-download .
    kst-study --config=studies/attention_128 --workdir=runs/attention_128

Two rows of `configs/studies/attention.py`, attention in hybrid space and its twin
without, on the same people at 128x128 with 5 columns fixed. A stack of 6 layers with 4
convolutions of 3x3 sees 24 pixels in each direction: most of a 48x48 image, but little
of this one. Both rows train for as long: the twin sees more images, since its step is
shorter.
"""

from ml_collections import ConfigDict

from kst_jax.configs.studies import attention, protocol

_IMAGES = 1_200


def get_config() -> ConfigDict:
    """Returns the study."""
    study = attention.get_config()
    study.data.size = (128, 128)
    setting = "uniform1d_5x"
    methods = {name: study.methods[name].to_dict() for name in ("twin4", "hybrid4")}
    # A step of the other row takes 1.2 to 1.3 times as long.
    methods["twin4"]["images"] = 1_552
    return ConfigDict(
        study.to_dict()
        | {
            "images": _IMAGES,
            "references": ("twin4",),
            "order": (setting,),
            "settings": {setting: protocol.settings(calibration=5)[setting]},
            "methods": methods,
            "tables": {
                "128x128: uniform 1D sampling": {
                    "settings": [setting],
                    "methods": list(methods),
                }
            },
        }
    )
