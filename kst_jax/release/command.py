r"""Releases a run's parameters, to share with others.

    kst-release runs/mine weights/mine --test=demo:test

writes weights/mine/checkpoints/0, config.json and the lists of people that the network
was trained on. Evaluation, export and the notebook need no more, and it takes at most a
third of the space that training needs. Only the file names of scans are kept, not their
paths, but Orbax stores the path of the output folder in files commit_success.txt. The
result cannot be trained further; evaluate it with

    kst-eval --config=saved:weights/mine --workdir=weights/mine \
        --config.eval.out=runs/mine_again
"""

import dataclasses

from kst_jax.models import registry
from kst_jax.programs import cli, files
from kst_jax.programs.arguments import Parser
from kst_jax.runs import checkpoints, fields_of_view, subjects
from kst_jax.stages import require_trained


def release(run: str, out: str, which: str = "latest", test: str | None = None) -> None:
    """Writes the parameters for evaluation, and who they were trained on.

    Args:
      run: folder of a run.
      out: folder to write; must not hold a run.
      which: "latest", or "best" in validation.
      test: scans to test on by default; None keeps the run's.

    Raises:
      InputError: the checkpoint does not exist, some of its parts are not trained yet,
        or the output folder already holds a checkpoint.
    """
    out = str(files.local_folder(out))
    params, config, step = checkpoints.read_parameters(run, which)
    model = registry.build(config.model)
    require_trained(config.train, step, model.stages, run)
    config = config.by_name()
    data = config.data if test is None else dataclasses.replace(config.data, test=test)
    released = dataclasses.replace(
        config,
        data=data,
        # There is only this checkpoint, and results go to the user's own folder.
        eval=dataclasses.replace(config.eval, out="", checkpoint="latest"),
    )
    noted = {part: subjects.read(run, part) for part in subjects.PARTS}
    people = {part: names for part, names in noted.items() if names}
    checkpoints.write_parameters(out, params, released, people)
    fields_of_view.write(out, fields_of_view.read(run))


def _main() -> None:
    """Command line: releases one run."""
    parser = Parser("kst-release", __doc__)
    parser.add_argument("run", help="folder of a run")
    parser.add_argument("out", help="folder to write; must not hold a run")
    parser.add_argument(
        "--checkpoint",
        choices=("latest", "best"),
        default="latest",
        help="which one (latest)",
    )
    parser.add_argument("--test", help="scans to test on (default: the run's)")
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
