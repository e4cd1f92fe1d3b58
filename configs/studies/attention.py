r"""What attention gives: patches of k-space as tokens, and networks without attention.

    kst-download .
    kst-study --config=studies/attention --workdir=runs/attention

The protocol of `configs/studies/search.py`: 2,000 images per cell, tested on one of the
small study's training people. The network is `configs/kst_plus.py` with 64 channels in
its refinement and a warm-up of 50 steps.

Patches lie along the readout under uniform 1D sampling; under Gaussian 2D sampling they
are squares, most of them partly sampled. The twins without attention tell what the rest
of the network gives. Attention in hybrid space joins a twin.
"""

from typing import Any

from ml_collections import ConfigDict

from kst_jax.configs import kst_plus
from kst_jax.configs.studies import protocol, search, small

_LINES, _POINTS = "uniform1d_5x", "gaussian2d_5x"


def get_config() -> ConfigDict:
    """Returns the study."""
    study = search.get_config()
    settings = {
        name: mask
        for name, mask in protocol.settings(calibration=2).items()
        if name in (_LINES, _POINTS)
    }
    lines, squares = _along_the_readout(), _squares()
    return ConfigDict(
        study.to_dict()
        | {
            "references": ("square4", "points", "twin4_longer", "twin"),
            "order": (_LINES, _POINTS),
            "settings": settings,
            "methods": lines | squares,
            "tables": {
                "Patches along the readout: uniform 1D sampling": {
                    "settings": [_LINES],
                    "methods": list(lines),
                },
                "Square patches: Gaussian 2D sampling": {
                    "settings": [_POINTS],
                    "methods": ["points", *squares, "twin"],
                },
            },
        }
    )


def _along_the_readout() -> dict[str, dict]:
    """Returns the rows of the table of uniform 1D sampling, by name."""
    points = _points()

    def changed(title: str, **model: Any) -> dict:
        return protocol.changed(points, title, model)

    patches = {
        f"p{p}": changed(f"Patches of {p} points", patch=(p, 1)) for p in (2, 4, 8)
    }
    return {
        "points": points,
        **patches,
        "p4_wide": changed("Patches of 4, width 96", patch=(4, 1), width=96, mlp=384),
        "p4_refined": changed(
            "Patches of 4, 96 channels", patch=(4, 1), refinement_features=96
        ),
        "p4_low": changed(
            "Patches of 4, low resolution 12x12", patch=(4, 1), lr_size=(12, 12)
        ),
        "twin": changed("Without attention", transformer=False),
        "twin4": changed(
            "Without attention, patches of 4", transformer=False, patch=(4, 1)
        ),
        # As long as the row below: a step takes 1.1 to 1.3 times as long there.
        "twin4_longer": {
            **changed(
                "Without attention, patches of 4, longer",
                transformer=False,
                patch=(4, 1),
            ),
            "images": 2600,
        },
        "hybrid4": changed(
            "Attention in hybrid space alone, patches of 4",
            transformer=False,
            hybrid=True,
            patch=(4, 1),
        ),
    }


def _squares() -> dict[str, dict]:
    """Returns the rows that only the table of Gaussian 2D sampling has, by name."""
    points = _points()
    squares = {
        f"square{p}": protocol.changed(
            points, f"Patches of {p}x{p} points", {"patch": (p, p)}
        )
        for p in (2, 4)
    }
    twin = protocol.changed(
        points,
        "Without attention, patches of 2x2",
        {"transformer": False, "patch": (2, 2)},
    )
    return {**squares, "twin_square2": twin}


def _points() -> dict:
    """Returns the network that the others change."""
    config = kst_plus.get_config()
    config.model.update(small.NETWORK | small.WIDE_REFINEMENT)
    config.train.update(warmup_steps=50, checkpoint_every=250, image_every=0)
    return protocol.method(config, title="Single points")
