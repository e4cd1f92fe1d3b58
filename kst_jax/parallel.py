"""Devices and processes: the only file that knows how many there are.

A step runs on every device with its share of the batch: `jit(shard_map(step))`, which
is what `jax.pmap` itself is built on. Under plain `jit`, jax 0.10 gathers the whole
batch on every device for each Fourier transform.

Devices form a grid of two axes. Along DATA each has its own slices of a batch; along
QUERY, of one device unless evaluation asks for more, they share the queries of a slice.
"""

import math
import os
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kst_jax.errors import InputError

DATA, QUERY = "data", "query"
REPLICATED, SHARDED = PartitionSpec(), PartitionSpec(DATA)


def connect(
    coordinator: str | None = None,
    processes: int | None = None,
    process: int | None = None,
) -> None:
    """Joins the processes of one run; must come before anything that uses a device.

    JAX ends the program where they are not all there within five minutes, and later
    where one of them has gone.

    Args:
      coordinator: address and port of process 0; like the others found by JAX itself
        on TPU pods and where Slurm, Open MPI or Kubernetes started the processes.
      processes: how many there are.
      process: number of this one.

    Raises:
      InputError: they cannot be found.
    """
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(
            f"the processes of this run cannot be joined ({error}); where neither a "
            "TPU pod nor Slurm, Open MPI or Kubernetes started them, give each "
            "--coordinator=HOST:PORT, --num_processes and --process_id"
        ) from error


def is_first() -> bool:
    """Whether this is the process that writes files and messages for all."""
    return jax.process_index() == 0


def make_mesh(slices: int, query_devices: int = 1) -> Mesh:
    """As many devices as share slices evenly: axes DATA and QUERY.

    Args:
      slices: how many are computed at a time, over all devices.
      query_devices: devices that share the queries of each slice.

    Raises:
      InputError: devices that cannot be divided so; those of several processes must all
        take part.
    """
    if jax.local_device_count() % query_devices:
        raise InputError(
            f"eval.query_devices={query_devices} does not divide the "
            f"{jax.local_device_count()} devices of a process"
        )
    groups = jax.device_count() // query_devices
    used = math.gcd(groups, slices)
    if jax.process_count() > 1 and used < groups:
        raise InputError(
            f"{slices} slices at a time do not divide among {groups} devices; make "
            "eval.batch_size, and train.batch_size over train.accumulate, a multiple"
        )
    # By process, so that the shares of the processes follow each other in a batch.
    devices = sorted(
        jax.devices(), key=lambda device: (device.process_index, device.id)
    )
    grid = np.array(devices).reshape(groups, query_devices)[:used]
    return Mesh(grid, (DATA, QUERY), axis_types=(AxisType.Auto, AxisType.Auto))


def warn_of_idle_devices(mesh: Mesh, name: str, slices: int) -> None:
    """Tells where slices do not divide among all devices.

    Args:
      mesh: what `make_mesh` made for them.
      name: the option that says how many they are.
      slices: how many.
    """
    used, groups = mesh.shape[DATA], jax.device_count() // mesh.shape[QUERY]
    if used < groups:
        print(
            f"warning: {used * mesh.shape[QUERY]} of {jax.device_count()} devices are "
            f"used; {name}={slices} does not divide among all: make it a multiple of "
            f"{groups}",
            file=sys.stderr,
        )


def map_over_devices(
    function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any, **jit_options: Any
) -> Callable:
    """Compiles a function that sees one device's share of what is sharded.

    Args:
      function: may use `each_its_own`, `mean`, `share` and `join`.
      mesh: the devices.
      in_specs: REPLICATED or SHARDED for each argument.
      out_specs: the same for the results.
      **jit_options: further arguments of `jax.jit`.
    """

    def precise(*args: Any) -> Any:
        # Without it accelerators round float32 factors of products to fewer bits. Here
        # it covers the backward rules too; bfloat16 factors are what they are.
        with jax.default_matmul_precision("highest"):
            return function(*args)

    mapped = jax.shard_map(precise, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    options = compiler_options(mesh.devices.flat[0])
    return jax.jit(mapped, compiler_options=options, **jit_options)


def compiler_options(device: jax.Device) -> dict[str, bool]:
    """XLA's options for the programs of a device, unless XLA_FLAGS has them.

    On an NVIDIA GPU products are left to cuBLAS: XLA tries Triton's kernels for each
    first, and those for unrounded float32 take minutes to compile.
    """
    option = "xla_gpu_enable_triton_gemm"
    if device.platform != "gpu" or option in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {option: False}


def each_its_own(tree: Any) -> Any:
    """Inside a mapped function: replicated values as each device's own.

    What is then computed from them stays on the device, gradients too, where JAX would
    otherwise sum the gradient over devices at each use of a value.
    """
    return jax.lax.pcast(tree, DATA, to="varying")


def own_beside(x: jax.Array, parameter: jax.Array) -> jax.Array:
    """A parameter as each device's own where `x` is, and as it was elsewhere.

    For functions of both with a gradient rule of their own: under shard_map JAX asks
    that the gradient which they give, each device's own, is of such a parameter.
    """
    return parameter + jnp.zeros_like(x[(0,) * x.ndim])


def mean(tree: Any) -> Any:
    """Inside a mapped function: the mean over DATA of each device's own values."""
    return jax.lax.pmean(tree, DATA)


def share(x_BxM: jax.Array, axis: str | None, padding: int) -> jax.Array:
    """Inside a mapped function: this device's part (B, m) along an axis of devices.

    Args:
      x_BxM: the whole, padded at its end to equal parts.
      axis: an axis of devices, or None for all of x.
      padding: value to pad with.
    """
    if axis is None:
        return x_BxM
    devices = jax.lax.axis_size(axis)
    size = -(-x_BxM.shape[1] // devices)
    width = [(0, 0), (0, devices * size - x_BxM.shape[1])]
    padded = jnp.pad(x_BxM, width, constant_values=padding)
    first = jax.lax.axis_index(axis) * size
    return jax.lax.dynamic_slice_in_dim(padded, first, size, axis=1)


def join(x_Bxm: jax.Array, axis: str | None) -> jax.Array:
    """Inside a mapped function: the parts (B, m, ...) of all devices along an axis."""
    if axis is None:
        return x_Bxm
    return jax.lax.all_gather(x_Bxm, axis, axis=1, tiled=True, to="invarying")


def shard(tree: Any, mesh: Mesh) -> Any:
    """Puts this process's share of a batch on its devices, as one global array each."""
    return _put(tree, mesh, SHARDED)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts values that every process has on every device."""
    return _put(tree, mesh, REPLICATED)


def _put(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def fetch(tree: Any) -> Any:
    """Global arrays as numpy arrays, whole in every process."""
    return multihost_utils.process_allgather(tree, tiled=True)
