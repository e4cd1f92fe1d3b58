r"""Evaluates a trained model: metrics, reconstructions and figures.

    kst-eval --config=demo --workdir=runs/demo

tests the model in runs/demo on the scans that its config names. On other scans, with
the config that a run was made with:

    kst-eval --config=saved:runs/demo --workdir=runs/demo \
        --config.data.test=/data/other_scans --config.eval.out=runs/demo/other_scans

Settings that matter first:

    --config.data.test=PATH         scans, as kst-train takes them
    --config.eval.out=FOLDER        where results go (WORKDIR/eval)
    --config.eval.checkpoint=best   or latest, the default; best is by validation
    --config.eval.batch_size=4      slices at a time

Means are printed. In WORKDIR/eval, or the folder named, there will be

    metrics.json                    PSNR, SSIM, NMSE: means, volumes, every slice
    reconstructions/*.h5            magnitudes, as fastMRI has them
    figures/*.png                   reconstructions, and the stages of one

all of them or none: an evaluation that is interrupted leaves nothing. Results of other
scans, another undersampling or another run are not overwritten, and whom the model was
trained on it is not tested on.
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
