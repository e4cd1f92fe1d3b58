"""Devices: the only file that knows how many there are.

A step runs on every device with its share of the batch: `jit(shard_map(step))`, which
is what `jax.pmap` itself is built on. Plain `jit` would gather the whole batch on every
device for each Fourier transform.
"""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kst_jax.errors import InputError

AXIS = "data"
REPLICATED, SHARDED = PartitionSpec(), PartitionSpec(AXIS)


def make_mesh() -> Mesh:
    """All devices of all processes along one axis."""
    return jax.make_mesh((jax.device_count(),), (AXIS,), axis_types=(AxisType.Auto,))


def check_batch_size(name: str, size: int, mesh: Mesh) -> None:
    """Raises InputError where a global batch does not divide among the devices."""
    if size % mesh.size:
        raise InputError(
            f"config.{name}={size} does not divide among {mesh.size} devices; make it "
            "a multiple"
        )


def map_over_devices(
    function: Callable, mesh: Mesh, in_specs: Any, out_specs: Any, **jit_options: Any
) -> Callable:
    """Compiles a function that sees one device's share of what is sharded.

    Args:
      function: may average over `AXIS` with `jax.lax.pmean`.
      mesh: the devices.
      in_specs: REPLICATED or SHARDED for each argument.
      out_specs: the same for the results.
      **jit_options: further arguments of `jax.jit`.
    """
    mapped = jax.shard_map(function, mesh=mesh, in_specs=in_specs, out_specs=out_specs)
    return jax.jit(mapped, **jit_options)


def shard(tree: Any, mesh: Mesh) -> Any:
    """Puts this process's share of a batch on its devices, as one global array each."""
    sharding = NamedSharding(mesh, SHARDED)
    return jax.tree.map(
        lambda x: jax.make_array_from_process_local_data(sharding, np.asarray(x)), tree
    )


def replicate(tree: Any, mesh: Mesh) -> Any:
    """Puts the same values on every device."""
    return jax.device_put(tree, NamedSharding(mesh, REPLICATED))
