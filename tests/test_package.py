"""What importing the package does, and what it leaves alone."""

import os
import subprocess
import sys
import tomllib
from types import SimpleNamespace

import jax
import jax.numpy as jnp
import pytest

from kst_jax import parallel
from tests.conftest import ROOT

WITHOUT_TRITON = {"xla_gpu_enable_triton_gemm": False}


def run(program, **environment):
    """What a Python program prints, in a process of its own."""
    done = subprocess.run(
        [sys.executable, "-c", program],
        env=os.environ | environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_folder_with_code_is_installed():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    code = {path.parent.relative_to(ROOT) for path in ROOT.glob("kst_jax/**/*.py")}
    named = set(project["tool"]["setuptools"]["packages"])
    assert {".".join(folder.parts) for folder in code} - named == set()


def test_importing_changes_no_flags_of_the_process():
    program = "import kst_jax.parallel, os; print(os.environ['XLA_FLAGS'])"
    assert run(program, XLA_FLAGS="--xla_a=1") == "--xla_a=1\n"


def test_a_config_is_read_without_readers_and_networks():
    heavy = {"h5py", "nibabel", "jax", "flax", "grain", "kst_jax.models.kst"}
    program = "import kst_jax.config, sys; print(*sys.modules)"
    assert not heavy & set(run(program).split())


@pytest.mark.parametrize(
    ("platform", "given", "options"),
    [
        ("gpu", "", WITHOUT_TRITON),
        ("gpu", "--xla_x=1", WITHOUT_TRITON),
        ("gpu", "--xla_gpu_enable_triton_gemm=true", {}),
        ("cpu", "", {}),
        ("tpu", "", {}),
    ],
)
def test_products_of_an_nvidia_gpu_are_left_to_cublas(
    platform, given, options, monkeypatch
):
    monkeypatch.setenv("XLA_FLAGS", given)
    assert parallel.compiler_options(SimpleNamespace(platform=platform)) == options


def test_xla_knows_the_option():
    """It refuses to compile with one that it does not know."""
    x = jnp.ones((2, 2))
    program = jax.jit(jnp.matmul, compiler_options=WITHOUT_TRITON)
    assert (program(x, x) == 2).all()
    with pytest.raises(jax.errors.JaxRuntimeError, match="xla_none"):
        jax.jit(jnp.matmul, compiler_options={"xla_none": False})(x, x)
