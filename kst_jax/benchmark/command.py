r"""Measures how fast a network is, and how much memory it takes.

    kst-benchmark --config=default

times a forward pass and a train step of the paper's network, prints a table and
writes all figures to runs/benchmark/benchmark.json. --batch_sizes, --precision,
--attention and --what choose the cases to compare, and --workdir the folder to write:

    kst-benchmark --config=default --what=forward \
        --precision=float32,bfloat16 --workdir=runs/precision

--sweep adds a plot over image sizes, WORKDIR/sweep.png; --pipeline adds the slices per
second that the data pipeline prepares. Results of other measurements are never
overwritten.

Every case (a batch size, a precision, an attention) runs in its own process, so that
compile time and peak memory belong to that case alone. Cases take turns, `--rounds`
times, since machines are noisy. Programs are compiled ahead of time; weights and slices
are random, which does not change the work.
"""

import argparse
import dataclasses
import itertools
import json
import os
import platform
import sys
from pathlib import Path
from typing import Any

import jax
from tqdm import tqdm

from kst_jax import figures
from kst_jax.benchmark import measuring
from kst_jax.benchmark.measuring import Case
from kst_jax.config import Config
from kst_jax.data import pipeline
from kst_jax.errors import InputError
from kst_jax.programs import config_arguments, files
from kst_jax.programs.arguments import Parser, words


def run(cases: list[Case], rounds: int = 1) -> list[dict[str, Any]]:
    """Measures cases in turn, each in a fresh process.

    Returns:
      For each case its description, the median, least and largest latency over all
      rounds, rates, memory and operations.

    Raises:
      InputError: a process died, most likely because memory ran out.
    """
    found: dict[int, list[dict]] = {number: [] for number in range(len(cases))}
    turns = [number for _ in range(rounds) for number in found]
    for number in tqdm(turns, "Benchmark", unit="case"):
        found[number].append(measuring.measure_apart(cases[number]))
    return [measuring.summary(cases[number], each) for number, each in found.items()]


def table(results: list[dict[str, Any]]) -> str:
    """Returns the results as a Markdown table."""
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
    """Returns all combinations of work, batch sizes and choices of `config.model`.

    Raises:
      InputError: the network lacks one of these choices.
    """
    for name in choices:
        if not hasattr(config.model, name):
            raise InputError(f"--{name}: {config.model.name} has no such setting")
    models = [
        dataclasses.replace(config.model, **dict(zip(choices, values, strict=True)))
        for values in itertools.product(*choices.values())
    ]
    return [
        Case(one, dataclasses.replace(config, model=model), batch)
        for one, batch, model in itertools.product(what, batches, models)
    ]


def at_size(case: Case, size: int) -> Case:
    """Returns the case at square images; its low-resolution grid keeps its share.

    Raises:
      InputError: the network cannot take this size.
    """
    config = case.config
    try:
        data = dataclasses.replace(config.data, size=(size, size), crop=(0, 0))
        model = config.model.resized(config.data.size, data.size)
        changed = dataclasses.replace(config, data=data, model=model)
    except InputError as error:
        raise InputError(f"--sweep: cannot use size {size}: {error}") from None
    return dataclasses.replace(case, config=changed)


def _parser() -> Parser:
    parser = Parser("kst-benchmark", __doc__)
    add = parser.add_argument
    add(
        "--batch_sizes",
        type=words,
        default=["1"],
        help="slices per call, over all devices (1)",
    )
    add(
        "--precision",
        type=words,
        default=[],
        help="float32, bfloat16, or both: float32,bfloat16",
    )
    add(
        "--attention",
        type=words,
        default=[],
        help="implementations to compare, such as auto,plain",
    )
    add(
        "--what",
        type=words,
        default=list(measuring.WORK),
        help=f"work to time ({','.join(measuring.WORK)})",
    )
    add("--calls", type=int, default=5, help="timed calls in each round (5)")
    add("--rounds", type=int, default=1, help="turns of each case (1)")
    add(
        "--sweep",
        type=words,
        default=[],
        help="sizes of square images to time, batch 1, forward",
    )
    add(
        "--pipeline",
        type=float,
        default=0.0,
        metavar="SECONDS",
        help="also measure the input pipeline alone, for so long (data.train)",
    )
    add(
        "--mesh",
        default="",
        help="devices as DATAxQUERY: 8x1 shares a batch among eight, 1x4 the queries "
        "of each slice among four (with --what=forward); by default as many as share "
        "the batch evenly",
    )
    return parser


def _measure(config: Config, workdir: str, args: argparse.Namespace) -> None:
    """Measures, prints the table, and writes JSON and plot."""
    os.environ["JAX_ENABLE_COMPILATION_CACHE"] = "false"  # in the cases' processes
    path = files.local_folder(workdir) / "benchmark.json"
    cases, rate = _cases(config, args), None
    files.make_folder(path.parent)
    files.require_same_json(
        path,
        "cases",
        _as_dicts(cases),
        f"{path}: holds other measurements; choose another folder with --workdir, "
        "or move the file away",
    )
    if args.pipeline:
        rate = pipeline.pipeline_rate(config, args.pipeline)
        print(f"input pipeline alone: {rate:.0f} slices/s")
    results = run(cases, args.rounds)
    print(f"{results[0]['device']}, {os.cpu_count()} CPU cores, jax {jax.__version__}")
    print(f"{results[0]['parameters']:,} parameters\n\n{table(results)}")
    _write(path, cases, results, rate)
    if args.sweep:
        figures.save(figures.scaling_figure(results), path.with_name("sweep.png"))


def _cases(config: Config, given: argparse.Namespace) -> list[Case]:
    for name, least in (("calls", 1), ("rounds", 1), ("pipeline", 0)):
        if getattr(given, name) < least:
            raise InputError(
                f"--{name}={getattr(given, name)} must be at least {least}"
            )
    if unknown := set(given.what) - set(measuring.WORK):
        raise InputError(
            f"--what: unknown {unknown.pop()!r}; choose from "
            f"{', '.join(measuring.WORK)}"
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


def main() -> None:
    """Command line."""
    config_arguments.run(_measure, _parser(), default_workdir="runs/benchmark")
