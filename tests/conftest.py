"""Strict settings for every test: 8 CPU devices, no silent broadcasting."""

import atexit
import os
import pathlib
import shutil
import tempfile

import jax
import pytest

# Tests compare with float32 references; an accelerator would round differently.
jax.config.update("jax_platforms", "cpu")
os.environ["JAX_PLATFORMS"] = "cpu"  # for programs that tests start
# Each worker, and the programs that its tests start, compile a program once and keep it
# here: not in the user's cache, and apart from other workers, as JAX writes in place.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="kst_jax-tests-")
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)
programs = pathlib.Path(os.environ["XDG_CACHE_HOME"]) / "kst_jax" / "programs"
jax.config.update("jax_compilation_cache_dir", str(programs))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Development data beside a checkout: scans and reference numbers too large to bundle.
SHARED = ROOT.parent / "shared"


@pytest.fixture(scope="module")
def quick_compilation():
    """Programs that compile twice as fast and run slower, for tests of behaviour.

    They are compiled as for users in the tests of numbers, of memory and of compiled
    programs.
    """
    name = "jax_disable_most_optimizations"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(name.upper(), "1")  # for programs that tests start
        jax.config.update(name, True)
        jax.clear_caches()  # which do not tell one kind of program from the other
        yield
        jax.config.update(name, False)
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared():
    """Folder of development data, or a skip where a checkout has none beside it."""
    if not (SHARED / "goldens").is_dir():
        pytest.skip("needs the development data, which lie beside some checkouts only")
    return SHARED
