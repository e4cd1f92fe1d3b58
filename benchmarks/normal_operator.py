"""Times A^H A off the grid: as a convolution, and by both transforms.

    python -m benchmarks.normal_operator

Spokes at 5x, one coil, one slice, on this machine's default device. The two take turns;
the table has the minimum and the median of 21 calls each, in milliseconds.
"""

import statistics
import time
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from kst_jax import trajectories
from kst_jax.data import nufft
from kst_jax.non_cartesian import NonCartesian

SIZES = (48, 128, 320)
_CALLS = 21


def acquisition(size: int) -> NonCartesian:
    """Returns radial sampling of images of `size` rows and columns."""
    shape = size, size
    points = trajectories.radial(shape, 5.0)
    density = nufft.compensation(points, shape)
    flat = jnp.asarray(points.reshape(1, -1, 2)), jnp.asarray(density.reshape(1, -1))
    return NonCartesian.on(*flat, shape)


def timed(
    ways: dict[str, Callable], sampled: NonCartesian, image: jax.Array
) -> dict[str, list[float]]:
    """Returns the seconds of each call, by way; the ways take turns."""
    compiled = {name: jax.jit(way) for name, way in ways.items()}
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for call in range(_CALLS + 1):
        for name, way in compiled.items():
            begun = time.perf_counter()
            jax.block_until_ready(way(sampled, image))
            if call:  # the first one compiles
                seconds[name].append(time.perf_counter() - begun)
    return seconds


def main() -> None:
    """Prints the table."""
    ways: dict[str, Callable] = {
        "convolution": lambda a, x: a.normal(x),
        "both transforms": lambda a, x: a.adjoint(a.forward(x)),
    }
    print(f"{jax.devices()[0].device_kind}, A^H A of spokes at 5x")
    rng = np.random.default_rng(0)
    for size in SIZES:
        image = jnp.asarray(rng.normal(size=(1, size, size, 2)), jnp.float32)
        for name, seconds in timed(ways, acquisition(size), image).items():
            least, middle = min(seconds) * 1e3, statistics.median(seconds) * 1e3
            print(f"{size}x{size} {name:16} {least:8.2f} {middle:8.2f} ms")


if __name__ == "__main__":
    main()
