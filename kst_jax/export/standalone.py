"""Reconstructs slices with an exported network; needs JAX and numpy alone.

    python reconstruct.py INPUT.npz IMAGE.npy

INPUT.npz holds `kspace`, complex (slices, H, W), centred, orthonormal and normalised
(as training had it: image minus mean, over standard deviation, of real and imaginary
parts together), and `mask`, bool (slices, H, W), True where sampled. IMAGE.npy will
hold the complex images (slices, H, W).

On an NVIDIA GPU the option xla_gpu_enable_triton_gemm=false in the environment's
XLA_FLAGS saves minutes of compiling.
"""

import argparse
import hashlib
import sys
import zipfile
from pathlib import Path

import jax
import numpy as np
from jax import export

_MAX_BYTES = 2**31  # of all arrays: what a small archive may claim has no end


def load(folder: Path) -> export.Exported:
    """The network; a damaged program could crash what reads it, so look first."""
    program = (folder / "network.stablehlo").read_bytes()
    checksum = (folder / "network.sha256").read_text().strip()
    if hashlib.sha256(program).hexdigest() != checksum:
        raise ValueError("network.stablehlo is damaged; export or copy it again")
    return export.deserialize(bytearray(program))


def read(source: str, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """K-space (slices, H, W, 2) and mask (slices, H, W) of an archive."""
    if not Path(source).is_file():
        raise ValueError("is not there, or no file")
    with zipfile.ZipFile(source) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
            raise ValueError(f"holds more than {_MAX_BYTES} bytes; divide the slices")
    with np.load(source) as arrays:
        kspace, mask = arrays["kspace"], arrays["mask"]
    if kspace.dtype.kind != "c" or kspace.shape[1:] != size:
        raise ValueError(f"kspace is {kspace.dtype} {kspace.shape}, not complex {size}")
    if mask.dtype.kind not in "bui" or mask.shape != kspace.shape:
        raise ValueError(f"mask is {mask.dtype} {mask.shape}, not as large as kspace")
    channels = np.stack([kspace.real, kspace.imag], axis=-1).astype(np.float32)
    return channels, mask.astype(bool)


def main(source: str, target: str) -> None:
    """Reads, reconstructs, writes."""
    folder = Path(__file__).parent
    try:
        named = str(folder)
        network = load(folder)
        named = source
        kspace, mask = read(source, network.in_avals[1].shape[1:])
    except Exception as error:  # damaged files fail in many ways inside the libraries
        sys.exit(f"error: {named}: {error}")
    try:
        image = np.asarray(jax.jit(network.call)(kspace, mask))
    except ValueError as error:  # such as a platform that it was not exported for
        sys.exit(f"error: {folder}: {error}")
    if not np.isfinite(image).all():
        sys.exit(
            f"error: {source}: a mask samples more or fewer points than those that the "
            "network was trained for, or the k-space holds what is not a number"
        )
    partial = Path(f"{target}.partial")
    try:
        with partial.open("wb") as file:
            np.save(file, image[..., 0] + 1j * image[..., 1])
        partial.replace(target)
    except OSError as error:
        partial.unlink(missing_ok=True)
        sys.exit(f"error: {target}: cannot be written ({error})")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("source", metavar="INPUT.npz")
    parser.add_argument("target", metavar="IMAGE.npy")
    main(**vars(parser.parse_args()))
