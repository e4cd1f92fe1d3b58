"""Reconstructs slices with an exported network; needs JAX and numpy alone.

    python reconstruct.py INPUT.npz IMAGE.npy

INPUT.npz holds `kspace`, complex (slices, H, W), centred, orthonormal and normalised
(as training had it: image minus mean, over standard deviation, of real and imaginary
parts together), and `mask`, bool (slices, H, W), True where sampled. IMAGE.npy will
hold the complex images (slices, H, W).

network.json tells which JAX wrote the network, and when. Other releases of JAX are
promised to read it for six months; export it again after that.
"""

import argparse
import contextlib
import hashlib
import json
import os
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax
import numpy as np
from jax import export

_MAX_BYTES = 2**31  # of all arrays: what a small archive may claim has no end


def load(folder: Path) -> tuple[dict[str, str], bytes]:
    """What network.json tells, and the program, whose checksum is right."""
    try:
        about = json.loads((folder / "network.json").read_text())
        about = {name: str(about[name]) for name in ("sha256", "jax", "date")}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError("network.json is damaged; copy it again") from error
    program = (folder / "network.stablehlo").read_bytes()
    # A damaged program could crash what reads it.
    if hashlib.sha256(program).hexdigest() != about["sha256"]:
        raise ValueError("network.stablehlo is damaged; export or copy it again")
    return about, program


@contextlib.contextmanager
def readable(about: dict[str, str]) -> Iterator[None]:
    """Names the likely cause where this JAX cannot read the program."""
    try:
        yield
    except Exception as error:  # another format fails in many ways
        raise ValueError(
            f"written by jax {about['jax']} on {about['date']}, and jax "
            f"{jax.__version__} cannot read it: {error}. Exported StableHLO is "
            "promised readable for six months only; export it again"
        ) from error


def require_platform(network: export.Exported, platform: str) -> None:
    """Raises ValueError where the network was not exported for this platform."""
    if platform not in network.platforms:
        raise ValueError(
            f"was exported for {', '.join(network.platforms)}, and JAX here runs on "
            f"{platform}; export it again with --platforms {platform}"
        )


def compiler_options(platform: str) -> dict[str, bool]:
    """XLA's options for a platform, unless XLA_FLAGS has them.

    On a GPU XLA tries Triton's kernels for each product first, and those for unrounded
    float32 take minutes to compile.
    """
    option = "xla_gpu_enable_triton_gemm"
    if platform not in ("cuda", "rocm") or option in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {option: False}


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
    folder, platform = Path(__file__).parent, export.default_export_platform()
    try:
        named = str(folder)
        about, program = load(folder)
        with readable(about):
            network = export.deserialize(bytearray(program))
        require_platform(network, platform)
        named = source
        kspace, mask = read(source, network.in_avals[1].shape[1:])
        named = str(folder)
        function = jax.jit(network.call, compiler_options=compiler_options(platform))
        with readable(about):
            lowered = function.lower(kspace, mask)
    except Exception as error:  # damaged files fail in many ways inside the libraries
        sys.exit(f"error: {named}: {error}")
    image = np.asarray(lowered.compile()(kspace, mask))
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
