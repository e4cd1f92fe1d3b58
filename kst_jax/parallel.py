"""Devices: the only file that knows how many there are.

A step runs on every device with its share of the batch: `jit(shard_map(step))`, which
is what `jax.pmap` itself is built on. Plain `jit` would gather the whole batch on every
device for each Fourier transform.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from kst_jax.errors import InputError

AXIS = "data"
REPLICATED, SHARDED = PartitionSpec(), PartitionSpec(AXIS)


def make_mesh(batch_size: int) -> Mesh:
    """As many devices as share a global batch evenly, along one axis.

    Raises:
      InputError: several processes, whose devices must all take part, cannot share it.
    """
    count = math.gcd(jax.device_count(), batch_size)
    if jax.process_count() > 1 and count < jax.device_count():
        raise InputError(
            f"a batch of {batch_size} does not divide among {jax.device_count()} "
            "devices; make train.batch_size and eval.batch_size a multiple"
        )
    return jax.make_mesh(
        (count,),
        (AXIS,),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:count],
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
