"""The K-Space Transformer: MR images from undersampled k-space, in JAX and Flax.

Importing it before JAX's first operation leaves products on an NVIDIA GPU to cuBLAS,
unless XLA_FLAGS says otherwise.
"""

import importlib.util
import os

__version__ = "0.1.0"


def _leave_products_to_cublas() -> None:
    """Spares minutes of compiling on an NVIDIA GPU.

    XLA tries Triton's kernels for each product first, and those for float32 products
    that are not rounded are slow to compile (docs/performance.md, "One GPU").
    """
    option, given = "xla_gpu_enable_triton_gemm", os.environ.get("XLA_FLAGS", "")
    plugins = (f"jax_cuda{version}_plugin" for version in (12, 13))
    if option not in given and any(map(importlib.util.find_spec, plugins)):
        os.environ["XLA_FLAGS"] = f"{given} --{option}=false".strip()


_leave_products_to_cublas()
