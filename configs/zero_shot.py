r"""Training for one scan that the scanner undersampled, on nothing but that scan.

kst-train --config=zero_shot --workdir=runs/own --config.data.train=scan.h5
kst-reconstruct runs/own scan.h5 images --checkpoint=best
"""

from ml_collections import ConfigDict

from kst_jax.configs import kst_plus


def get_config() -> ConfigDict:
    """Returns all settings."""
    config = kst_plus.get_config()
    config.data.update(native=True, size=(224, 224))
    config.data.coils.count = 8
    config.data.augment.phase = 0.0
    config.data.prefetch = 4
    config.mask.kind = "measured"
    config.eval.batch_size = 1
    config.model.update(
        width=48,
        heads=2,
        mlp=192,
        encoder_layers=2,
        lr_layers=2,
        hr_layers=3,
        lr_size=(56, 56),
        patch=(4, 1),
        refinement_features=32,
    )
    config.train.update(
        supervision="self",
        validation_share=0.2,
        steps=2_000,
        batch_size=1,
        stages=(0.0, 0.05, 0.95),
        warmup_steps=100,
        validate_every=50,
        keep_best=1,
        image_every=0,
        log_every=10,
    )
    return config
