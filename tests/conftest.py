"""Strict settings for every test: 8 CPU devices, no silent broadcasting."""

import contextlib
import os
import pathlib
import shutil
import tempfile
import time

import jax
import pytest
from jax._src import compiler

ROOT = pathlib.Path(__file__).resolve().parent.parent
# Numbers of the authors' network (tests/references/README.md).
AUTHORS = ROOT / "tests" / "references" / "authors_small.npz"
AUTHORS_CHECKPOINT = AUTHORS.with_suffix(".pth")
# Development data beside a checkout: scans and reference numbers too large to bundle.
SHARED = ROOT.parent / "shared"

WEEK = 7 * 24 * 3600


def own_programs(kept):
    """A cache for this process, and its folder of compiled programs.

    Workers do not share one, because JAX writes programs in place. They exchange whole
    ones through the kept ones, which JAX uses as far as they still fit.
    """
    kept.mkdir(parents=True, exist_ok=True)
    for path in (*kept.iterdir(), *kept.parent.glob("worker-*")):
        with contextlib.suppress(OSError):  # another process may be quicker
            if path.stat().st_mtime < time.time() - WEEK:
                path.unlink() if path.is_file() else shutil.rmtree(path)
    cache = pathlib.Path(tempfile.mkdtemp(prefix="worker-", dir=kept.parent))
    programs = cache / "kst_jax" / "programs"
    programs.mkdir(parents=True)
    return cache, programs


def link_new(source, target):
    for name in set(os.listdir(source)) - set(os.listdir(target)):
        with contextlib.suppress(FileExistsError, FileNotFoundError):
            os.link(source / name, target / name)


# Tests compare with float32 references; an accelerator would round differently.
jax.config.update("jax_platforms", "cpu")
os.environ["JAX_PLATFORMS"] = "cpu"  # for programs that tests start
# A program is compiled once by a worker and the programs that its tests start, and not
# kept in the user's cache.
KEPT = ROOT / ".test_cache" / "programs"
cache, programs = own_programs(KEPT)
os.environ["XDG_CACHE_HOME"] = str(cache)
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0"
jax.config.update("jax_compilation_cache_dir", str(programs))
jax.config.update("jax_persistent_cache_min_compile_time_secs", 0)
# Programs compile twice as fast and run slower: the same operations on the same
# buffers, but LLVM polishes less. See `full_compilation`. With the next flag, it gets
# the K-Space Transformer off the grid wrong by 1 %; each of the two alone does not.
os.environ["JAX_DISABLE_MOST_OPTIMIZATIONS"] = "1"
jax.config.update("jax_disable_most_optimizations", True)
# XLA's former code generator for CPUs halves compilation again. An XLA that no longer
# knows a flag ends the process.
FLAGS = os.environ.get("XLA_FLAGS")
if jax.__version_info__ < (0, 11):
    os.environ["XLA_FLAGS"] = f"{FLAGS or ''} --xla_cpu_use_fusion_emitters=false"
jax.config.update("jax_num_cpu_devices", 8)
jax.config.update("jax_numpy_rank_promotion", "raise")


def pytest_unconfigure():
    shutil.rmtree(cache, ignore_errors=True)


@pytest.fixture(scope="module", autouse=True)
def exchanged_programs():
    """Other workers' programs at the start of a module, and its own for them."""
    link_new(KEPT, programs)
    yield
    link_new(programs, KEPT)


def with_fusion_emitters(*args, options_of=compiler.get_compile_options, **kwargs):
    options = options_of(*args, **kwargs)
    if jax.__version_info__ < (0, 11):
        options.env_option_overrides += [("xla_cpu_use_fusion_emitters", True)]
    return options


@pytest.fixture(scope="module")
def full_compilation():
    """Programs are compiled as for users, where tests compare with others' numbers.

    From its first use to the end of a module, so it is needed off the grid as well.
    """
    name = "jax_disable_most_optimizations"
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv(name.upper())
        patch.delenv("XLA_FLAGS", raising=False)
        if FLAGS is not None:
            patch.setenv("XLA_FLAGS", FLAGS)
        # This process has read its flags, and JAX has no setting for this one.
        patch.setattr(compiler, "get_compile_options", with_fusion_emitters)
        jax.config.update(name, False)
        jax.clear_caches()  # which do not tell one kind of program from the other
        yield
        jax.config.update(name, True)
        jax.clear_caches()


@pytest.fixture(scope="session")
def shared():
    """Folder of development data, or a skip where a checkout has none beside it."""
    if not (SHARED / "goldens").is_dir():
        pytest.skip("needs the development data, which lie beside some checkouts only")
    return SHARED
