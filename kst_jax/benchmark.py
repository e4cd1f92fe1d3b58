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
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from absl import flags
from tqdm import tqdm

from kst_jax import cli, figures, files, parallel, processes, training
from kst_jax.config import Config
from kst_jax.data import pipeline
from kst_jax.errors import InputError
from kst_jax.models.contract import Reconstructor
from kst_jax.models.kst import KSTConfig
from kst_jax.models.registry import build
from kst_jax.operations import network_flops, traced_flops
from kst_jax.tokens import Batch, batch_of, tokenise

_WORK = ("forward", "train step")
_MATRIX = 4096  # rows and columns of the product that tells a device's speed


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
      what: "forward", or "train step" of the last stage.
      config: network, undersampling and image size.
      batch: slices at a time, over all devices.
      devices: how many share the batch, and how many the queries of each slice (in a
        forward pass); None for as many as share the batch evenly.
      calls: timed calls, after one to warm up.
    """

    what: str
    config: Config
    batch: int = 1
    devices: tuple[int, int] | None = None
    calls: int = 5

    @property
    def flops(self) -> int:
        """Operations of one call; a gradient counts twice its forward pass."""
        config = self.config
        if isinstance(config.model, KSTConfig):
            sampled = round(np.mean(pipeline.open_sampler(config).counts))
            one = network_flops(config.model, sampled, config.data.size)
        else:
            one = traced_flops(build(config.model), example(config, 1))
        return self.batch * one * (3 if self.what == "train step" else 1)


def example(config: Config, count: int) -> Batch:
    """A batch of random slices, undersampled as the config says."""
    sampler, rng = pipeline.open_sampler(config), np.random.default_rng(0)

    def one() -> dict[str, np.ndarray]:
        image = rng.normal(size=(*config.data.size, 2)).astype(np.float32)
        return tokenise(image, sampler.random(rng), sampler.counts) | {"image": image}

    return batch_of([one() for _ in range(count)])


def measure(case: Case) -> dict[str, Any]:
    """Compiles and times one case, in this process: seconds, bytes, operations."""
    mesh = _mesh(case)
    function, state = _program(case, mesh)
    batch = parallel.shard(example(case.config, case.batch), mesh)
    started = time.perf_counter()
    compiled = function.lower(state, batch).compile()
    compile_s = time.perf_counter() - started
    dtype = case.config.model.dtype
    rates = [matrix_rate(dtype)]
    seconds = _time(compiled, state, batch, case)
    rates.append(matrix_rate(dtype))
    return {
        "device": jax.devices()[0].device_kind,
        "mesh": dict(mesh.shape),
        "compile_s": compile_s,
        "seconds": seconds,
        "flops_counted_by_xla": compiled.cost_analysis().get("flops"),
        "matrix_product_flops_per_s": max(rates) * mesh.size,
        "temporary_bytes": compiled.memory_analysis().temp_size_in_bytes,
        "peak_bytes": _peak_bytes(),
    }


def make_forward(model: Reconstructor, mesh: jax.sharding.Mesh) -> Callable:
    """Compiles reconstruction alone: parameters and a Batch to images (B, H, W, 2).

    Devices along the mesh's second axis share the queries of each slice.
    """
    model = model.clone(query_axis=parallel.QUERY)

    def function(params: dict, batch: Batch) -> jax.Array:
        return model.reconstruct(params, batch).image

    return parallel.map_over_devices(
        function,
        mesh,
        in_specs=(parallel.REPLICATED, parallel.SHARDED),
        out_specs=parallel.SHARDED,
    )


def _mesh(case: Case) -> jax.sharding.Mesh:
    parts = case.config.train.accumulate if case.what == "train step" else 1
    slices, rest = divmod(case.batch, parts)
    if rest:
        raise InputError(f"a batch of {case.batch} has no {parts} equal parts")
    if case.devices is None:
        return parallel.make_mesh(slices)
    data, query = case.devices
    if slices % data or jax.device_count() % (data * query):
        raise InputError(
            f"--mesh={data}x{query}: {slices} slices at a time and "
            f"{jax.device_count()} devices cannot be shared so"
        )
    if query > 1 and case.what == "train step":
        raise InputError(f"--mesh={data}x{query}: only with --what=forward")
    return parallel.make_mesh(data, query)


def _program(case: Case, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """What is timed, and its first argument."""
    config, one = case.config, example(case.config, 1)
    model = build(config.model)
    if case.what == "forward":
        params = jax.jit(model.init)(jax.random.key(0), one)["params"]
        return make_forward(model, mesh), parallel.replicate(params, mesh)
    optimizer = training.make_optimizer(config.train, model)
    step = training.make_step(model, optimizer, config.train, model.stages[-1], mesh)
    state = training.init_state(model, optimizer, one, config.train)
    return step, parallel.replicate(state, mesh)


def _time(compiled: Callable, state: Any, batch: Batch, case: Case) -> list[float]:
    seconds = []
    for _ in range(case.calls + 1):
        started = time.perf_counter()
        output = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.perf_counter() - started)
        if case.what == "train step":
            state = output[0]  # the step has used up the old one's memory
    return seconds[1:]


def matrix_rate(dtype: str) -> float:
    """Operations a second of a large matrix product on one device, best of five."""
    x = jnp.ones((_MATRIX, _MATRIX), dtype)
    with jax.default_matmul_precision("highest"):
        product = jax.jit(jnp.matmul).lower(x, x).compile()
    product(x, x).block_until_ready()
    seconds = []
    for _ in range(5):
        started = time.perf_counter()
        product(x, x).block_until_ready()
        seconds.append(time.perf_counter() - started)
    return 2 * _MATRIX**3 / min(seconds)


def _peak_bytes() -> int:
    """Largest use so far: of the device's memory, or on a CPU of this process's."""
    device = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return device.get("peak_bytes_in_use", resident)


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
        found[number].append(_in_a_process(cases[number]))
    return [summary(cases[number], each) for number, each in found.items()]


def _in_a_process(case: Case) -> dict[str, Any]:
    with processes.pool(1) as pool:
        try:
            return pool.submit(measure, case).result()
        except BrokenProcessPool:
            raise InputError(
                f"the process of {case.what}, batch {case.batch}, "
                f"{case.config.data.size} died; if memory ran out, take a smaller "
                "batch or size, --attention=blocked, or --config.model.remat=layers"
            ) from None


def summary(case: Case, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """One row of results from the rounds that `measure` gave for a case."""
    model, config = case.config.model, case.config
    params = jax.eval_shape(build(model).init, jax.random.key(0), example(config, 1))
    seconds = [second for found in rounds for second in found["seconds"]]
    median = statistics.median(seconds)
    product = max(found["matrix_product_flops_per_s"] for found in rounds)
    return rounds[0] | {
        "what": case.what,
        "size": config.data.size,
        "batch": case.batch,
        "dtype": model.dtype,
        "attention": getattr(model, "attention", "-"),
        "remat": getattr(model, "remat", "-"),
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "compile_s": min(found["compile_s"] for found in rounds),
        "seconds": seconds,
        "median_s": median,
        "min_s": min(seconds),
        "max_s": max(seconds),
        "images_per_s": case.batch / median,
        "flops": case.flops,
        "flops_per_s": case.flops / median,
        "matrix_product_flops_per_s": product,
        "share_of_matrix_product": case.flops / median / product,
        "peak_bytes": max(found["peak_bytes"] for found in rounds),
    }


def table(results: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    head = (
        "what | size | batch | dtype | attention | compile s | median s (min-max) | "
        "images/s | GFLOP/s | of matrix product | temporary GB | peak GB"
    )
    rows = [head, " | ".join("---" for _ in head.split(" | "))]
    rows += [
        f"{r['what']} | {r['size'][0]}x{r['size'][1]} | {r['batch']} | {r['dtype']} | "
        f"{r['attention']} | {r['compile_s']:.1f} | {r['median_s']:.3f} "
        f"({r['min_s']:.3f}-{r['max_s']:.3f}) | {r['images_per_s']:.2f} | "
        f"{r['flops_per_s'] / 1e9:.0f} | {r['share_of_matrix_product']:.0%} | "
        f"{r['temporary_bytes'] / 1e9:.2f} | {r['peak_bytes'] / 1e9:.2f}"
        for r in results
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
        "what", list(_WORK), "Work to time: forward, train step, or both."
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
    _require_same(path, cases)
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
    if unknown := set(given.what) - set(_WORK):
        raise InputError(f"--what: {unknown.pop()!r} is none of {', '.join(_WORK)}")
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
        data, _, query = given.mesh.partition("x")
        devices = _whole(data, "mesh"), _whole(query, "mesh")
    return [
        dataclasses.replace(case, calls=given.calls, devices=devices) for case in cases
    ]


def _whole(text: str, flag: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise InputError(f"--{flag}: {text!r} is not a whole number above 0")
    return int(text)


def _require_same(path: Path, cases: list[Case]) -> None:
    """Refuses to overwrite what other cases gave."""
    if not path.exists():
        return
    try:
        before = json.loads(path.read_text()).get("cases")
    except (ValueError, AttributeError):
        before = None
    if before != _as_json(cases):
        raise InputError(
            f"{path}: holds other measurements; name another folder with --workdir, or "
            "move it away"
        )


def _as_json(cases: list[Case]) -> list[dict]:
    return json.loads(json.dumps([dataclasses.asdict(case) for case in cases]))


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
        "cases": _as_json(cases),
        "results": results,
        "pipeline_slices_per_s": pipeline_rate,
    }
    with files.whole(path) as partial:
        partial.write_text(json.dumps(about, indent=1) + "\n")
    print(f"\nwritten to {path}")


if __name__ == "__main__":
    _define_flags()
    cli.run_with_config(main, default_workdir="runs/benchmark", may_join=False)
