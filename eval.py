"""Evaluates a trained model and writes metrics, reconstructions and figures.

  python eval.py --config=configs/demo.py --workdir=runs/demo

Other scans: --config.data.test=PATH. The config a run was made with:
--config=configs/saved.py:WORKDIR. Results go to WORKDIR/eval unless --config.eval.out
names another folder.
"""

from kst_jax import cli, evaluation

if __name__ == "__main__":
    cli.run_with_config(evaluation.evaluate)
