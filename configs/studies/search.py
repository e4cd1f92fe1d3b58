r"""The search for the K-Space Transformer's best form: one change at a time, briefly.

    kst-study --config=studies/search --workdir=runs/search

Like `configs/studies/small.py`, but with 2,000 images per cell, and tested on one of
that study's training people, so that its test person stays unseen. D5C5 also trains at
higher, falling rates with clipped gradients, since its published training is meant to
be longer. docs/study.md has the results.
"""

import functools

from ml_collections import ConfigDict

from kst_jax.configs.studies import protocol, small

_RESIDUAL = {"residual_spectrum": 0.1}
_REFINING = {"stages": (0.05, 0.05, 0.9)}


def get_config() -> ConfigDict:
    """Returns the study."""
    study = small.get_config()
    published, d5c5 = (study.methods[name].to_dict() for name in ("kst", "d5c5"))

    changed = functools.partial(protocol.changed, published)
    methods = {
        "published": changed("As published", {}),
        "residual": changed("Residual spectrum", _RESIDUAL),
        "refining": changed("Residual, refining sooner", _RESIDUAL, **_REFINING),
        "faster": changed(
            "Residual, refining sooner, higher rate",
            _RESIDUAL,
            **_REFINING,
            learning_rate=1e-3,
            warmup_steps=50,
            clip_norm=1.0,
        ),
        "log": changed(
            "Residual, refining sooner, logarithmic",
            {**_RESIDUAL, "log_magnitude": True},
            **_REFINING,
        ),
        "shared": changed(
            "Residual, refining sooner, one refinement for all layers",
            {**_RESIDUAL, "shared_refinement": True},
            **_REFINING,
        ),
        "averaged": changed(
            "Residual, refining sooner, moving average",
            _RESIDUAL,
            **_REFINING,
            ema=0.99,
        ),
        "last": changed(
            "Residual, refining sooner, earlier layers weigh 0.1",
            _RESIDUAL,
            **_REFINING,
            layer_weight=0.1,
        ),
        "wider": changed(
            "Residual, refining sooner, 64 channels",
            {**_RESIDUAL, "refinement_features": 64},
            **_REFINING,
        ),
        "d5c5": d5c5,
        **{
            name: protocol.changed(
                d5c5,
                f"D5C5, rate {rate:g}, cosine, clipped",
                {},
                **small.TUNED_D5C5 | {"learning_rate": rate},
            )
            for name, rate in (("d5c5_5e4", 5e-4), ("d5c5_2e3", 2e-3))
        },
    }
    study.data.update(
        train="colin27_t1w.nii.gz,s1_t1w.nii.gz", test="aomic_sub-0017_t1w.nii.gz"
    )
    setting = "uniform1d_5x"
    columns = {"settings": [setting], "methods": list(methods)}
    return ConfigDict(
        study.to_dict()
        | {
            "images": 2000,
            "references": ("published",),
            "order": (setting,),
            "settings": {setting: study.settings[setting].to_dict()},
            "methods": methods,
            "tables": {"Search: uniform 1D sampling": columns},
        }
    )
