"""What importing the package does."""

import importlib.util
import os
import subprocess
import sys

import pytest

import kst_jax

WITH_TRITON = "--xla_gpu_enable_triton_gemm=true"
WITHOUT_TRITON = "--xla_gpu_enable_triton_gemm=false"


@pytest.mark.parametrize(
    ("plugin", "given", "flags"),
    [
        ("jax_cuda12_plugin", "", WITHOUT_TRITON),
        ("jax_cuda13_plugin", "--xla_x=1", f"--xla_x=1 {WITHOUT_TRITON}"),
        ("jax_cuda13_plugin", WITH_TRITON, WITH_TRITON),
        ("jax_other_plugin", "", ""),
    ],
)
def test_products_of_an_nvidia_gpu_are_left_to_cublas(
    plugin, given, flags, monkeypatch
):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: name == plugin)
    monkeypatch.setenv("XLA_FLAGS", given)
    importlib.reload(kst_jax)
    assert os.environ["XLA_FLAGS"] == flags


def test_xla_knows_the_option():
    """It ends a process at its first operation for an option that it does not know."""
    program = "import jax; print(jax.numpy.arange(3).sum())"
    environment = {**os.environ, "XLA_FLAGS": WITHOUT_TRITON}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True
    )
    assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr
