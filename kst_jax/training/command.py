r"""Trains a reconstruction model.

    kst-train --config=demo --workdir=runs/demo

trains a small network on a bundled scan, in minutes. On your own scans:

    kst-train --config=fastmri_gaussian2d_5x --workdir=runs/knee \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

The same command resumes an interrupted run; Ctrl-C saves first. You can change any
setting on the command line. The most important ones:

    --config.data.train=PATH        scans to train on: a folder, a file, a pattern, or
                                    several with commas, of fastMRI single-coil .h5,
                                    NIfTI, Analyze, or the authors' .npy
    --config.data.test=PATH         scans to set apart for kst-eval
    "--config.data.size=(128,128)"  rows and columns of the images
    --config.mask.kind=gaussian_2d  how k-space is undersampled, and
    --config.mask.acceleration=5    how much
    --config.train.steps=100000     how long
    --config.train.batch_size=4     slices per step
    --config.train.validate_every=5000
                                    steps between validations

Scans that the scanner undersampled, without ground truth, at their measured size:

    kst-train --config=fastmri_knee_4x --workdir=runs/own \
        --config.data.train=/data/undersampled \
        --config.mask.kind=measured --config.train.supervision=self
    kst-reconstruct runs/own /data/undersampled images

For a single scan, see --config=zero_shot.

kst_jax/config.py explains the settings, kst_jax/data_config.py those of the data, and
the files in kst_jax/models/ the network's own, --config.model. The answer to a misspelt
one lists the valid names. WORKDIR will contain

    checkpoints/                    the network, for kst-eval
    config.json, *_subjects.json    how it was trained, and on whose scans
    train.jsonl, tensorboard/       loss and PSNR by step, sample images
"""

from kst_jax.programs import config_arguments
from kst_jax.programs.arguments import Parser
from kst_jax.training import loop


def main() -> None:
    """Command line."""
    config_arguments.run(
        lambda config, workdir, _: loop.train(config, workdir),
        Parser("kst-train", __doc__),
        may_join=True,
    )
