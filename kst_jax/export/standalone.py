"""Reconstructs slices with an exported network; needs JAX and numpy alone.

    python reconstruct.py INPUT.npz IMAGE.npy

INPUT.npz holds `kspace`, complex (slices, H, W), centred, orthonormal and normalised as
in training, and `mask`, bool (slices, H, W), True where sampled. A network for several
coils takes kspace (slices, C, H, W), and `maps`, their sensitivity maps of the same
shape. IMAGE.npy will hold the complex images (slices, H, W). Over the real and
imaginary parts together, training normalises by data.normalise:

    measured   k-space is divided so that its zero-filled image has a mean square of 1
    target     the k-space is that of the image minus mean, over standard deviation

network.json names the version of JAX that wrote the network, and the date. JAX promises
that its other releases can read the network for six months; after that, export it
again.
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

_MAX_BYTES = 2**31  # of all arrays: a small archive may claim any size


def load(folder: Path) -> tuple[dict[str, str], bytes]:
    """Reads network.json and the program, and checks the program's checksum."""
    try:
        about = json.loads((folder / "network.json").read_text())
        about = {name: str(about[name]) for name in ("sha256", "jax", "date")}
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError("network.json is damaged; copy it again") from error
    program = (folder / "network.stablehlo").read_bytes()
    # A damaged program could crash its reader.
    if hashlib.sha256(program).hexdigest() != about["sha256"]:
        raise ValueError("network.stablehlo is damaged; export or copy it again")
    return about, program


@contextlib.contextmanager
def readable(about: dict[str, str]) -> Iterator[None]:
    """Names the likely cause if this JAX cannot read the program."""
    try:
        yield
    except Exception as error:  # another format fails in many ways
        raise ValueError(
            f"written by jax {about['jax']} on {about['date']}, and jax "
            f"{jax.__version__} cannot read it: {error}. JAX promises to read "
            "exported StableHLO for six months only; export it again"
        ) from error


def require_platform(network: export.Exported, platform: str) -> None:
    """Raises ValueError if the network was not exported for this platform."""
    if platform not in network.platforms:
        raise ValueError(
            f"was exported for {', '.join(network.platforms)}, but JAX here runs on "
            f"{platform}; export it again with --platforms {platform}"
        )


def compiler_options(platform: str) -> dict[str, bool]:
    """Returns XLA's options for a platform, unless XLA_FLAGS sets them.

    On a GPU XLA would first try Triton's kernels for each product, and those for
    unrounded float32 take minutes to compile.
    """
    option = "xla_gpu_enable_triton_gemm"
    if platform not in ("cuda", "rocm") or option in os.environ.get("XLA_FLAGS", ""):
        return {}
    return {option: False}


def read(source: str, size: tuple[int, ...]) -> list[np.ndarray]:
    """Reads k-space (slices, *size, 2), mask (slices, H, W) and maps from an archive.

    Maps are only there for several coils, whose size is (C, H, W).
    """
    if not Path(source).is_file():
        raise ValueError("no such file")
    with zipfile.ZipFile(source) as archive:
        if sum(entry.file_size for entry in archive.infolist()) > _MAX_BYTES:
            raise ValueError(
                f"holds more than {_MAX_BYTES} bytes; split it into several files"
            )
    with np.load(source) as arrays:
        several = ("maps",) if len(size) == 3 else ()
        found = {name: arrays[name] for name in ("kspace", "mask", *several)}
    mask = found.pop("mask")
    for name, x in found.items():
        if x.dtype.kind != "c" or x.shape[1:] != size or len(x) != len(mask):
            wanted = f"complex {(len(mask), *size)}"
            raise ValueError(f"{name} is {x.dtype} {x.shape}, not {wanted}")
    shape = len(mask), *size[-2:]
    if mask.dtype.kind not in "bui" or mask.shape != shape:
        raise ValueError(f"mask is {mask.dtype} {mask.shape}, not bool {shape}")
    kspace, *maps = (
        np.stack([x.real, x.imag], axis=-1).astype(np.float32) for x in found.values()
    )
    return [kspace, mask.astype(bool), *maps]


def main(source: str, target: str) -> None:
    """Reads k-space and masks, reconstructs, and writes the images."""
    folder, platform = Path(__file__).parent, export.default_export_platform()
    try:
        named = str(folder)
        about, program = load(folder)
        with readable(about):
            network = export.deserialize(bytearray(program))
        require_platform(network, platform)
        named = source
        inputs = read(source, network.in_avals[0].shape[1:-1])
        named = str(folder)
        function = jax.jit(network.call, compiler_options=compiler_options(platform))
        with readable(about):
            lowered = function.lower(*inputs)
    except Exception as error:  # damaged files fail in many ways inside the libraries
        sys.exit(f"error: {named}: {error}")
    image = np.asarray(lowered.compile()(*inputs))
    if not np.isfinite(image).all():
        sys.exit(
            f"error: {source}: a mask samples more or fewer points than the masks of "
            "the training, or the k-space holds values that are not finite"
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
