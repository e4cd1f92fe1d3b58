"""Trains a reconstruction model.

  python train.py --config=configs/demo.py --workdir=runs/demo

The same command carries on where an interrupted run left off. Any setting can be
changed on the command line, for example --config.train.steps=2000; kst_jax/config.py
tells what each one means.
"""

from kst_jax import cli, training

if __name__ == "__main__":
    cli.run_with_config(training.train)
