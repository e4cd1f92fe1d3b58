"""Reconstructs slices with an exported network; needs JAX and numpy alone.

    python reconstruct.py INPUT.npz IMAGE.npy

INPUT.npz holds `kspace`, complex (slices, H, W), centred, orthonormal and normalised
(as training had it: image minus mean, over standard deviation, of real and imaginary
parts together), and `mask`, bool (slices, H, W), True where sampled. IMAGE.npy will
hold the complex images (slices, H, W).
"""

import sys
from pathlib import Path

import jax
import numpy as np
from jax import export


def main(source: str, target: str) -> None:
    """Reads, reconstructs, writes."""
    program = Path(__file__).with_name("network.stablehlo").read_bytes()
    network = jax.jit(export.deserialize(bytearray(program)).call)
    with np.load(source) as arrays:
        kspace, mask = arrays["kspace"], arrays["mask"]
    channels = np.stack([kspace.real, kspace.imag], axis=-1).astype(np.float32)
    image = np.asarray(network(channels, mask.astype(bool)))
    if not np.isfinite(image).all():
        sys.exit(
            f"error: {source}: a mask samples more or fewer points than those that the "
            "network was trained for, or the k-space holds what is not a number"
        )
    np.save(target, image[..., 0] + 1j * image[..., 1])


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
