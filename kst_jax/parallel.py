"""Devices and processes: the only file that knows how many there are.

Every device runs a step on its share of the batch: `jit(shard_map(step))`, on which
`jax.pmap` itself is built. Under plain `jit`, jax 0.10 gathers the whole batch on every
device for each Fourier transform.

Devices form a grid with two axes. Along DATA, each has its own slices of a batch. Along
QUERY, they share the queries of a slice; this axis has length 1 unless evaluation asks
for more.
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
    """Connects the processes of one run; call it before anything uses a device.

    JAX ends the program if not all processes connect within five minutes, or if one
    disappears later. On TPU pods, and under Slurm, Open MPI or Kubernetes, JAX finds
    all three arguments itself.

    Args:
      coordinator: address and port of process 0.
      processes: number of processes.
      process: index of this process.

    Raises:
      InputError: the processes cannot connect.
    """
    try:
        jax.distributed.initialize(coordinator, processes, process)
    except (ValueError, RuntimeError, OSError) as error:
        raise InputError(
            f"the processes of this run cannot connect ({error}); unless a TPU pod, "
            "Slurm, Open MPI or Kubernetes started them, give each process "
            "--coordinator=HOST:PORT, --num_processes and --process_id"
        ) from error


def lack_of_devices() -> str | None:
    """Says why JAX has no device and what to do; None if it has one."""
    try:
        jax.devices()
    except (RuntimeError, AssertionError) as error:
        wanted = jax.config.values["jax_platforms"]  # from JAX_PLATFORMS
        cause = str(error).partition(" (set JAX_PLATFORMS")[0]
        return (
            f"JAX_PLATFORMS={wanted}: JAX finds no such device here"
            + (f" ({cause})" if cause else "")
            + ". Unset JAX_PLATFORMS to use what there is, set JAX_PLATFORMS=cpu, or "
            f"install JAX for {wanted} (README.md explains)"
        )
    return None


def is_first() -> bool:
    """Returns whether this process writes the files and messages for all of them."""
    return jax.process_index() == 0


def make_mesh(slices: int, query_devices: int = 1) -> Mesh:
    """Arranges as many devices as can share the slices evenly on axes DATA and QUERY.

    Args:
      slices: number of slices computed at a time, over all devices.
      query_devices: devices that share the queries of each slice.

    Raises:
      InputError: the devices do not divide evenly; with several processes, every device
        must take part.
    """
    if jax.local_device_count() % query_devices:
        raise InputError(
            f"eval.query_devices={query_devices} does not divide the "
            f"{jax.local_device_count()} devices of each process; set it to a divisor"
        )
    groups = jax.device_count() // query_devices
    used = math.gcd(groups, slices)
    if jax.process_count() > 1 and used < groups:
        raise InputError(
            f"{slices} slices at a time do not divide among {groups} devices; set "
            "eval.batch_size, and train.batch_size / train.accumulate, to a multiple"
        )
    # Sorted by process, so that each process's share of a batch is contiguous.
    devices = sorted(
        jax.devices(), key=lambda device: (device.process_index, device.id)
    )
    grid = np.array(devices).reshape(groups, query_devices)[:used]
    return Mesh(grid, (DATA, QUERY), axis_types=(AxisType.Auto, AxisType.Auto))


def warn_of_idle_devices(mesh: Mesh, name: str, slices: int) -> None:
    """Prints a warning if the slices leave some devices unused.

    Args:
      mesh: the devices that `make_mesh` chose for these slices.
      name: the option that sets the number of slices.
      slices: number of slices.
    """
    used, groups = mesh.shape[DATA], jax.device_count() // mesh.shape[QUERY]
    if used < groups:
        print(
            f"warning: only {used * mesh.shape[QUERY]} of {jax.device_count()} devices "
            f"are used: {name}={slices} does not divide among all; use a multiple of "
            f"{groups}",
            file=sys.stderr,
        )


def map_over_devices(
    function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any, **jit_options: Any
) -> Callable:
    """Compiles a function that sees one device's shard of each sharded argument.

    Args:
      function: may use `each_its_own`, `mean`, `share` and `join`.
      mesh: the devices.
      in_specs: REPLICATED or SHARDED for each argument.
      out_specs: the same for the results.
      **jit_options: further arguments of `jax.jit`.
    """

    def precise(*args: Any) -> Any:
        # Otherwise accelerators round the float32 factors of products to fewer bits.
        # Set here, it covers the backward rules too; bfloat16 is not affected.
        with jax.default_matmul_precision("highest"):
            return function(*args)

    mapped = jax.shard_map(precise, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    options = compiler_options(mesh.devices.flat[0])
    return jax.jit(mapped, compiler_options=options, **jit_options)


def compiler_options(device: jax.Device) -> dict[str, bool]:
    """Returns XLA's options for a device's programs, unless XLA_FLAGS sets them.

    On NVIDIA GPUs they leave products to cuBLAS: XLA would first try Triton's kernels
    for each product, and those for unrounded float32 take minutes to compile.
    """
    option = "xla_gpu_enable_triton_gemm"
    if device.platform != "gpu" or option in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {option: False}


def each_its_own(tree: Any) -> Any:
    """Inside a mapped function: marks replicated values as each device's own.

    Results and gradients computed from them then stay on the device; otherwise JAX
    would sum the gradient over devices at each use of a value.
    """
    return jax.lax.pcast(tree, DATA, to="varying")


def own_beside(x: jax.Array, parameter: jax.Array) -> jax.Array:
    """Marks a parameter as each device's own if `x` is; otherwise returns it unchanged.

    For functions of both with a custom gradient rule: the rule returns each device's
    own gradient, and under shard_map JAX then wants the parameter marked the same way.
    """
    return parameter + jnp.zeros_like(x[(0,) * x.ndim])


def mean(tree: Any) -> Any:
    """Inside a mapped function: averages each device's own values over DATA."""
    return jax.lax.pmean(tree, DATA)


def share(x_BxM: jax.Array, axis: str | None, padding: int) -> jax.Array:
    """Inside a mapped function: takes this device's part (B, m) along a device axis.

    Args:
      x_BxM: the whole array; it is padded at the end to give equal parts.
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
    """Inside a mapped function: joins all devices' parts (B, m, ...) along an axis."""
    if axis is None:
        return x_Bxm
    return jax.lax.all_gather(x_Bxm, axis, axis=1, tiled=True, to="invarying")


def shard(tree: Any, mesh: Mesh) -> Any:
    """Puts this process's share of a batch on its devices, as global arrays."""
    return _put(tree, mesh, SHARDED)


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Copies values that every process holds to every device."""
    return _put(tree, mesh, REPLICATED)


def _put(tree: Any, mesh: Mesh, spec: PartitionSpec) -> Any:
    sharding = NamedSharding(mesh, spec)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def fetch(tree: Any) -> Any:
    """Gathers global arrays into numpy arrays, complete in every process."""
    return multihost_utils.process_allgather(tree, tiled=True)
