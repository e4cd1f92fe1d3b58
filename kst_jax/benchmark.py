r"""Measures how fast a network is, and how much memory it takes.

    python -m kst_jax.benchmark --config=configs/default.py

times a forward pass and a train step of the paper's network, prints a table and
writes all figures to runs/benchmark/benchmark.json. --batch_sizes, --precision,
--attention and --what choose what is compared, and --workdir where it is written:

    python -m kst_jax.benchmark --config=configs/default.py --what=forward \
        --precision=float32,bfloat16 --workdir=runs/precision

With --sweep there is also a plot over image sizes, WORKDIR/sweep.png; with --pipeline
also the slices a second that the data pipeline prepares. Results of other measurements
are not overwritten.

Every case (a batch size, a precision, an attention) runs in a process of its own, so
that its compile time and its peak memory are its own. Cases are run in turn, `--rounds`
times, since machines are noisy. Programs are compiled ahead of time; weights and slices
are random, which changes none of the work.
"""

import dataclasses
import itertools
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax
from absl import flags
from tqdm import tqdm

from kst_jax import cli, figures, files, speed
from kst_jax.config import Config
from kst_jax.data import pipeline
from kst_jax.errors import InputError
from kst_jax.speed import Case


def run(cases: list[Case], rounds: int = 1) -> list[dict[str, Any]]:
    """Measures cases in turn, each in a fresh process.

    Returns:
      For each case what it was, median, least and largest latency over all rounds,
      rates, memory and operations.

    Raises:
      InputError: a process that died, most likely for want of memory.
    """
    found: dict[int, list[dict]] = {number: [] for number in range(len(cases))}
    turns = [number for _ in range(rounds) for number in found]
    for number in tqdm(turns, "Benchmark", unit="case"):
        found[number].append(speed.measure_apart(cases[number]))
    return [speed.summary(cases[number], each) for number, each in found.items()]


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    head = (
        "what | size | batch | dtype | attention | compile s | median s (min-max) | "
        "images/s | GFLOP/s | of matrix product | temporary GB | peak GB"
    )
    rows = [head, " | ".join("---" for _ in head.split(" | "))]
    speeds = [
        ("-", "-")
        if r["flops_per_s"] is None
        else (f"{r['flops_per_s'] / 1e9:.0f}", f"{r['share_of_matrix_product']:.0%}")
        for r in results
    ]
    rows += [
        f"{r['what']} | {r['size'][0]}x{r['size'][1]} | {r['batch']} | {r['dtype']} | "
        f"{r['attention']} | {r['compile_s']:.1f} | {r['median_s']:.4g} "
        f"({r['min_s']:.4g}-{r['max_s']:.4g}) | {r['images_per_s']:.2f} | "
        f"{speed} | {share} | "
        f"{r['temporary_bytes'] / 1e9:.2f} | {r['peak_bytes'] / 1e9:.2f}"
        for r, (speed, share) in zip(results, speeds, strict=True)
    ]
    return "\n".join(f"| {row} |" for row in rows)


def variants(
    config: Config, what: list[str], batches: list[int], **choices: list[str]
) -> list[Case]:
    """All combinations of work, batch sizes and choices of `config.model`.

    Raises:
      InputError: a choice that the network does not have.
    """
    for name in choices:
        if not hasattr(config.model, name):
            raise InputError(f"--{name}: {config.model.name} has no such choice")
    models = [
        dataclasses.replace(config.model, **dict(zip(choices, values, strict=True)))
        for values in itertools.product(*choices.values())
    ]
    return [
        Case(one, dataclasses.replace(config, model=model), batch)
        for one, batch, model in itertools.product(what, batches, models)
    ]


def at_size(case: Case, size: int) -> Case:
    """The case with square images, and a low-resolution grid of the same share.

    Raises:
      InputError: a size that the share does not divide.
    """
    config = case.config
    data = dataclasses.replace(config.data, size=(size, size), crop=(0, 0))
    try:
        model = config.model.resized(config.data.size, data.size)
    except InputError as error:
        raise InputError(f"--sweep: {size} cannot be: {error}") from None
    changed = dataclasses.replace(config, data=data, model=model)
    return dataclasses.replace(case, config=changed)


def _define_flags() -> None:
    flags.DEFINE_list("batch_sizes", ["1"], "Slices at a time, over all devices.")
    flags.DEFINE_list("precision", [], "float32, bfloat16, or both: float32,bfloat16.")
    flags.DEFINE_list("attention", [], "Implementations to compare: auto,plain,...")
    flags.DEFINE_list(
        "what", list(speed.WORK), "Work to time: forward, train step, or both."
    )
    flags.DEFINE_integer("calls", 5, "Timed calls in each round.", lower_bound=1)
    flags.DEFINE_integer("rounds", 1, "Turns that each case gets.", lower_bound=1)
    flags.DEFINE_list("sweep", [], "Sizes of square images to try, batch 1, forward.")
    flags.DEFINE_float(
        "pipeline",
        0,
        "Seconds to measure the input pipeline alone for, too (data.train).",
        lower_bound=0,
    )
    flags.DEFINE_string(
        "mesh",
        "",
        "Devices as DATAxQUERY: 8x1 shares a batch among eight, 1x4 the queries of "
        "each slice among four (with --what=forward). By default as many as share the "
        "batch.",
    )


def main(config: Config, workdir: str) -> None:
    """Command line: measures, prints the table, writes JSON and plot."""
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # of the cases' processes
    cases, path, rate = _cases(config), Path(workdir) / "benchmark.json", None
    files.make_folder(path.parent)
    files.require_same_json(
        path,
        "cases",
        _as_dicts(cases),
        f"{path}: holds other measurements; name another folder with --workdir, or "
        "move it away",
    )
    if flags.FLAGS.pipeline:
        rate = pipeline.pipeline_rate(config, flags.FLAGS.pipeline)
        print(f"input pipeline alone: {rate:.0f} slices/s")
    results = run(cases, flags.FLAGS.rounds)
    print(f"{results[0]['device']}, {os.cpu_count()} CPU cores, jax {jax.__version__}")
    print(f"{results[0]['parameters']:,} parameters\n\n{table(results)}")
    _write(path, cases, results, rate)
    if flags.FLAGS.sweep:
        figures.save(figures.scaling_figure(results), path.with_name("sweep.png"))


def _cases(config: Config) -> list[Case]:
    given = flags.FLAGS
    if unknown := set(given.what) - set(speed.WORK):
        raise InputError(
            f"--what: {unknown.pop()!r} is none of {', '.join(speed.WORK)}"
        )
    cases = variants(
        config,
        ["forward"] if given.sweep else given.what,
        [1] if given.sweep else [_whole(n, "batch_sizes") for n in given.batch_sizes],
        dtype=given.precision or [config.model.dtype],
        **({"attention": given.attention} if given.attention else {}),
    )
    if given.sweep:
        sizes = [_whole(n, "sweep") for n in given.sweep]
        cases = [at_size(case, size) for case in cases for size in sizes]
    if not cases:
        raise InputError("--what and --batch_sizes leave nothing to measure")
    devices = None
    if given.mesh:
        data, x, query = given.mesh.partition("x")
        if not x:
            raise InputError(f"--mesh={given.mesh}: give DATAxQUERY, such as 8x1")
        devices = _whole(data, "mesh"), _whole(query, "mesh")
    return [
        dataclasses.replace(case, calls=given.calls, devices=devices) for case in cases
    ]


def _whole(text: str, flag: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--{flag}: {text!r} is not a whole number above 0")
    return int(text)


def _as_dicts(cases: list[Case]) -> list[dict]:
    return [dataclasses.asdict(case) for case in cases]


def _write(
    path: Path,
    cases: list[Case],
    results: list[dict[str, Any]],
    pipeline_rate: float | None,
) -> None:
    about = {
        "command": sys.argv,
        "python": platform.python_version(),
        "jax": jax.__version__,
        "cpu_cores": os.cpu_count(),
        "cases": _as_dicts(cases),
        "results": results,
        "pipeline_slices_per_s": pipeline_rate,
    }
    with files.whole(path) as partial:
        partial.write_text(json.dumps(about, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    _define_flags()
    cli.run_with_config(main, default_workdir="runs/benchmark", may_join=False)
