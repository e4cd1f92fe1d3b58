r"""Evaluates a trained model: metrics, reconstructions and figures.

    kst-eval --config=demo --workdir=runs/demo

tests the model in runs/demo on the scans that its config names. To test on other scans,
with the config that the run was trained with:

    kst-eval --config=saved:runs/demo --workdir=runs/demo \
        --config.data.test=/data/other_scans --config.eval.out=runs/demo/other_scans

The most important settings:

    --config.data.test=PATH         scans, as kst-train takes them
    --config.eval.out=FOLDER        where results go (default WORKDIR/eval)
    --config.eval.checkpoint=best   best in validation; the default is latest
    --config.eval.batch_size=4      slices at a time
    --config.eval.members=RUN,RUN   runs of other seeds, an ensemble with this one
    --config.eval.calibration=DIR   results of other people, to scale deviations by
                                    (docs/uncertainty.md)

It prints the means and writes into that folder

    metrics.json                    PSNR, SSIM, NMSE: means, volumes, every slice
    reconstructions/*.h5            magnitudes in fastMRI's format
    figures/*.png                   reconstructions, and the stages of one slice

It writes all of them or none: an interrupted evaluation leaves no results. It
never overwrites results of other scans, another undersampling or another run, and never
tests a model on people that it was trained on.
"""

from kst_jax.evaluation import evaluate
from kst_jax.programs import config_arguments
from kst_jax.programs.arguments import Parser


def main() -> None:
    """Command line."""
    config_arguments.run(
        lambda config, workdir, _: evaluate.evaluate(config, workdir),
        Parser("kst-eval", __doc__),
        may_join=True,
    )
