r"""A network for one scan that the scanner undersampled, trained on that scan alone.

    kst-train --config=zero_shot --workdir=runs/one --config.data.train=scan.h5
    kst-reconstruct runs/one scan.h5 images --checkpoint=best

For scans of eight coils or more, sampled by columns. It is zero-shot self-supervised
learning (Yaman et al., ICLR 2022): at each step a part of the measured columns is held
out and compared with (`train.held_out`), and another part, always the same, is kept
from training to find out when to stop (`train.validation_share`). The network is that
of `configs/kst_plus.py`, smaller, with tokens of four points along the readout.

At 224x224, with 55 of 224 columns measured, a step took 1.9 s of processor time on one
core (Intel Xeon), after a minute and a half of compilation, and the process 2.0 GiB.
Validation was best at step 640 and hardly changed from 560 on (docs/training.md).
"""

from ml_collections import ConfigDict

from kst_jax.configs import kst_plus


def get_config() -> ConfigDict:
    """Returns all settings."""
    config = kst_plus.get_config()
    config.data.update(native=True, size=(224, 224), prefetch=4)
    config.data.augment.phase = 0.0
    config.data.coils.count = 8
    config.mask.kind = "measured"
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
        steps=800,
        batch_size=1,
        stages=(0.0, 0.0, 1.0),
        warmup_steps=50,
        validate_every=40,
        keep_best=1,
        image_every=0,
        log_every=10,
    )
    config.eval.batch_size = 1
    return config
