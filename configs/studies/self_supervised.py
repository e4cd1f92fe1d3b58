r"""Training without ground truth at 48x48: how much of what targets give is kept.

    kst-download .
    kst-study --config=studies/self_supervised --workdir=runs/self_supervised

The people of `configs/studies/small.py` with a random phase, uniform 1D sampling at 5x:
9 of 48 columns, 2 of them fixed at the centre. Each row sees 6,000 images. The first
row is trained with targets and a new mask at each visit. The others know one scan of
each slice, and compare what they do not see of it: plainly, or weighted by how likely a
column is held out.

Flips are the only augmentation, for all rows: nothing else can be done to a scan
without its missing points. Tokens are patches of 4 points along the readout, which
halves the time of a step (docs/study.md, "What attention gives").
"""

from ml_collections import ConfigDict

from kst_jax.configs import default, kst_plus
from kst_jax.configs.studies import protocol, small

_SETTING = "uniform1d_5x"


def get_config() -> ConfigDict:
    """Returns the study."""
    config, methods = default.get_config(), _methods()
    config.data.update(small.BRAINS)
    config.data.augment.flip_columns = True
    settings = {_SETTING: protocol.settings(calibration=2)[_SETTING]}
    title = "With and without targets: uniform 1D sampling"
    return protocol.define(
        config,
        settings,
        methods,
        {title: protocol.table(settings, methods)},
        images=6_000,
        references=("target", "self"),
    )


def _methods() -> dict[str, dict]:
    """Returns the rows by name."""
    config = kst_plus.get_config()
    config.model.update(small.NETWORK | small.WIDE_REFINEMENT, patch=(4, 1))
    config.train.update(checkpoint_every=250, image_every=0)
    target = protocol.method(config, title="Trained with targets")
    return {
        "target": target,
        "self": protocol.changed(
            target, "Trained without targets", {}, supervision="self"
        ),
        "self_weighted": protocol.changed(
            target,
            "Trained without targets, weighted",
            {},
            supervision="self",
            weighted=True,
        ),
    }
