r"""A run's parameters alone, to give to others.

    kst-release runs/mine weights/mine --test=demo:test

writes weights/mine/checkpoints/0, config.json and the lists of people it was trained
on: what evaluation, export and the notebook need, and a third or less of the size of
what training needs. Of the paths of scans only the last names are kept; Orbax notes the
path of the folder that is written, in files commit_success.txt. It cannot be trained
further:

    kst-eval --config=saved:weights/mine --workdir=weights/mine \
        --config.eval.out=runs/mine_again
"""

import dataclasses
from pathlib import PurePath

from kst_jax.models import registry
from kst_jax.programs import cli
from kst_jax.programs.arguments import Parser
from kst_jax.runs import checkpoints, subjects
from kst_jax.stages import require_trained


def release(run: str, out: str, which: str = "latest", test: str | None = None) -> None:
    """Writes the parameters that evaluation takes, and whom they are made from.

    Args:
      run: folder of a run.
      out: folder to write, without a run in it.
      which: "latest", or "best" in validation.
      test: scans that are tested by default; None for the run's.

    Raises:
      InputError: no such checkpoint, one that is not trained in all its parts, or a
        folder that holds one already.
    """
    params, config, step = checkpoints.read_parameters(run, which)
    model = registry.build(config.model)
    require_trained(config.train, step, model.stages, run)
    data = config.data.by_name()
    if test is not None:
        data = dataclasses.replace(data, test=test)
    bank = PurePath(config.mask.bank).name
    released = dataclasses.replace(
        config,
        data=data,
        mask=dataclasses.replace(config.mask, bank=bank),
        # The one checkpoint is the latest, and results go to whoever has it.
        eval=dataclasses.replace(config.eval, out="", checkpoint="latest"),
    )
    people = {part: subjects.read(run, part) for part in subjects.PARTS}
    checkpoints.write_parameters(out, params, released, people)


def _main() -> None:
    """Command line: releases one run."""
    parser = Parser("kst-release", __doc__)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("out", help="folder to write, without a run in it")
    parser.add_argument(
        "--checkpoint",
        choices=("latest", "best"),
        default="latest",
        help="which one (latest)",
    )
    parser.add_argument("--test", help="scans to test by default (the run's)")
    args = parser.parse_args()
    release(args.run, args.out, args.checkpoint, args.test)
    print(f"wrote {args.out}; evaluate it with")
    print(
        f"  kst-eval --config=saved:{args.out} --workdir={args.out} "
        "--config.eval.out=RESULTS"
    )


def main() -> None:
    """Command line."""
    cli.run(_main)
