r"""Methods for four coils at 48x48, the K-Space Transformer with and without attention.

    kst-download .
    kst-study --config=studies/coils --workdir=runs/coils

The people of `configs/studies/small.py` with a random phase, each seen by a bank of
simulated sets of four coils. Maps come from a calibration scan of 24x24 that does not
count as sampled and is the same for all methods. Each network sees 6,000 images in the
same order with the same masks. One K-Space Transformer sees the coils combined before
undersampling, which no scanner measures; another has no attention, so each point is
predicted from its own zero-filled value and by the refinement. E2E-VarNet is small: 6
cascades with 8 channels and 3 poolings. D5C5 has the rate of `configs/studies/small.py`
for short trainings.

The field of view is 208 pixels wide, not 192: heads that reach its edge have no smooth
maps there.
"""

from ml_collections import ConfigDict

from kst_jax.configs import d5c5, default, kst_plus, sense, tv, varnet
from kst_jax.configs.studies import protocol, small

_IMAGES = 6_000


def get_config() -> ConfigDict:
    """Returns the study."""
    settings = {
        name: mask
        for name, mask in protocol.settings(calibration=2).items()
        if name in ("uniform1d_5x", "gaussian2d_5x")
    }
    methods = _methods()
    for method in methods.values():
        method["train"] |= {"checkpoint_every": 250, "image_every": 0}
    config = default.get_config()
    config.data.update(small.BRAINS | {"crop": (208, 208)})
    config.data.augment.update(
        flip_columns=True, rotation=10.0, scaling=0.1, intensity=0.2
    )
    config.data.coils.count = 4
    return protocol.define(
        config,
        settings,
        methods,
        {
            "Four coils: uniform 1D sampling": protocol.table(
                ["uniform1d_5x"], methods
            ),
            "Four coils: Gaussian 2D sampling": protocol.table(
                ["gaussian2d_5x"], ["varnet", "kst", "kst_twin"]
            ),
        },
        images=_IMAGES,
        references=("kst", "kst_twin"),
    )


def _methods() -> dict[str, dict]:
    """Returns the rows by name."""
    linear = {"tv": tv.get_config(), "sense": sense.get_config()}
    transformer, cascade = kst_plus.get_config(), varnet.get_config()
    transformer.model.update(small.NETWORK | small.WIDE_REFINEMENT)
    cascade.model.update(cascades=6, features=8, poolings=3, maps="given")
    improved = protocol.method(transformer, title=kst_plus.TITLE)
    return {
        **{
            name: protocol.method(
                config, images=config.train.steps * config.train.batch_size
            )
            for name, config in linear.items()
        },
        "varnet": protocol.method(cascade, title="E2E-VarNet, small"),
        "d5c5": protocol.changed(
            protocol.method(d5c5.get_config()), "D5C5", {}, **small.TUNED_D5C5
        ),
        "kst_combined": improved
        | {
            "title": f"{kst_plus.TITLE}, coils combined beforehand",
            "coils": {"combine": True},
        },
        "kst": improved,
        "kst_twin": protocol.changed(improved, kst_plus.TWIN, {"transformer": False}),
    }
