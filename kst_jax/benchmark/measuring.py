"""Measures the speed and memory of a network, one case at a time."""

import dataclasses
import resource
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures.process import BrokenProcessPool
from typing import Any

import jax
import jax.numpy as jnp

from kst_jax import parallel
from kst_jax.benchmark.operation_counts import network_flops, traced_flops
from kst_jax.config import Config
from kst_jax.data import opening, pipeline
from kst_jax.errors import InputError
from kst_jax.models.config import KSTConfig
from kst_jax.models.contract import Reconstructor
from kst_jax.models.registry import build
from kst_jax.programs import processes
from kst_jax.tokens import Batch
from kst_jax.training import loop, optimizers

WORK = ("forward", "train step")
_MATRIX = 4096  # rows and columns of the product that measures a device's speed


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure.

    Attributes:
      what: "forward", or "train step" of the last stage.
      config: network, undersampling and image size.
      batch: slices per call, over all devices.
      devices: how many devices share the batch, and how many the queries of each slice
        (in a forward pass); None for as many as share the batch evenly.
      calls: timed calls, after one to warm up.
    """

    what: str
    config: Config
    batch: int = 1
    devices: tuple[int, int] | None = None
    calls: int = 5

    def __post_init__(self):
        """Raises InputError if no device can measure the case."""
        if self.batch % self.parts:
            raise InputError(
                f"a batch of {self.batch} does not divide into {self.parts} equal parts"
            )
        if self.devices and self.devices[1] > 1 and self.what == "train step":
            raise InputError(
                f"--mesh={self.devices[0]}x{self.devices[1]}: only with --what=forward"
            )

    @property
    def parts(self) -> int:
        """Number of parts in which a call does its batch, one after the other."""
        return self.config.train.accumulate if self.what == "train step" else 1

    @property
    def flops(self) -> int | None:
        """Operations of one call, if known; a gradient counts as two forward passes."""
        config = self.config
        if isinstance(config.model, KSTConfig):
            layout = opening.open_sampler(config).layout(config.model.patch)
            coils = config.data.coils.count if config.data.coils.separate else 1
            one: int | None = network_flops(
                config.model, layout, config.data.size, coils
            )
        else:
            one = traced_flops(build(config.model), example(config, 1))
        return one and self.batch * one * (3 if self.what == "train step" else 1)


def example(config: Config, count: int) -> Batch:
    """Returns a batch of random slices, undersampled as the config says."""
    return pipeline.example_batch(config, opening.open_sampler(config), count)


def measure(case: Case) -> dict[str, Any]:
    """Compiles and times a case in this process: seconds, bytes, operations."""
    mesh = mesh_of(case)
    function, state = program(case, mesh)
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


def mesh_of(case: Case) -> jax.sharding.Mesh:
    """Returns the devices that measure a case."""
    slices = case.batch // case.parts
    if case.devices is None:
        return parallel.make_mesh(slices)
    data, query = case.devices
    if slices % data or jax.device_count() % (data * query):
        raise InputError(
            f"--mesh={data}x{query}: does not divide {slices} slices at a time and "
            f"{jax.device_count()} devices evenly"
        )
    return parallel.make_mesh(data, query)


def program(case: Case, mesh: jax.sharding.Mesh) -> tuple[Any, Any]:
    """Returns the function to time and its first argument."""
    config, one = case.config, example(case.config, 1)
    model = build(config.model)
    if case.what == "forward":
        params = jax.jit(model.init)(jax.random.key(0), one)["params"]
        return make_forward(model, mesh), parallel.replicate(params, mesh)
    optimizer = optimizers.make_optimizer(config.train, model)
    step = loop.make_step(model, optimizer, config.train, model.stages[-1], mesh)
    state = loop.init_state(model, optimizer, one, config.train)
    return step, parallel.replicate(state, mesh)


def _time(compiled: Callable, state: Any, batch: Batch, case: Case) -> list[float]:
    seconds = []
    for _ in range(case.calls + 1):
        started = time.perf_counter()
        output = jax.block_until_ready(compiled(state, batch))
        seconds.append(time.perf_counter() - started)
        if case.what == "train step":
            state = output[0]  # the step reuses the old state's memory
    return seconds[1:]


def matrix_rate(dtype: str) -> float:
    """Operations per second of a large matrix product on a device, best of five."""
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
    """Peak use so far of the device's memory, or on a CPU of this process's."""
    device = jax.local_devices()[0].memory_stats() or {}
    unit = 1 if sys.platform == "darwin" else 1024
    resident = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return device.get("peak_bytes_in_use", resident)


def measure_apart(case: Case) -> dict[str, Any]:
    """Measures a case in a fresh process, so that peak memory belongs to it alone.

    Raises:
      InputError: the process died, most likely because memory ran out.
    """
    with processes.pool(1) as pool:
        try:
            return pool.submit(measure, case).result()
        except BrokenProcessPool:
            raise InputError(
                f"the process of {case.what}, batch {case.batch}, "
                f"{case.config.data.size} died; if memory ran out, take a smaller "
                "batch, size or network"
            ) from None


def summary(case: Case, rounds: list[dict[str, Any]]) -> dict[str, Any]:
    """Returns a row of results from the rounds that `measure` returned for a case."""
    model, config = case.config.model, case.config
    params = jax.eval_shape(build(model).init, jax.random.key(0), example(config, 1))
    seconds = [second for found in rounds for second in found["seconds"]]
    median = statistics.median(seconds)
    product = max(found["matrix_product_flops_per_s"] for found in rounds)
    flops = case.flops
    rate = flops and flops / median
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
        "flops": flops,
        "flops_per_s": rate,
        "matrix_product_flops_per_s": product,
        "share_of_matrix_product": rate and rate / product,
        "peak_bytes": max(found["peak_bytes"] for found in rounds),
    }
