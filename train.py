r"""Trains a reconstruction model.

    python train.py --config=configs/demo.py --workdir=runs/demo

trains a small network on a bundled scan, in minutes. On scans of your own:

    python train.py --config=configs/fastmri_gaussian2d_5x.py --workdir=runs/knee \
        --config.data.train=/data/singlecoil_train \
        --config.data.test=/data/singlecoil_val

The same command carries on where an interrupted run left off; Ctrl-C saves first.
Any setting can be changed on the command line. Those that matter first:

    --config.data.train=PATH        scans to train on: a folder, a file, a pattern, or
                                    several with commas, of fastMRI single-coil .h5,
                                    NIfTI, Analyze, or the authors' .npy
    --config.data.test=PATH         scans to set apart for eval.py
    "--config.data.size=(128,128)"  rows and columns of the images
    --config.mask.kind=gaussian_2d  how k-space is undersampled, and
    --config.mask.acceleration=5    how much
    --config.train.steps=100000     how long
    --config.train.batch_size=4     slices a step
    --config.train.validate_every=5000
                                    steps between validations

kst_jax/config.py explains all of them but the network's own, --config.model, which
kst_jax/models/kst.py and the files beside it do; a misspelt one is answered with the
valid names. In WORKDIR there will be

    checkpoints/                    the network, for eval.py
    config.json, *_subjects.json    how it was made, and on whom
    train.jsonl, tensorboard/       loss and PSNR by step, sample images
"""

from kst_jax import cli, training

if __name__ == "__main__":
    cli.run_with_config(training.train)
