"""Comparisons with the code of others: taking turns, their files, the same network."""

import sys
from pathlib import Path

import h5py
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import fastmri_loader, normal_operator, pytorch_network, turns
from kst_jax.config_dict import from_dict
from kst_jax.configs import fastmri_knee_4x
from kst_jax.data import opening, pipeline, sources
from tests.conftest import ROOT

TORCH = ROOT / ".venv-torch" / "bin" / "python"
WRITER = """
import sys
from benchmarks import turns

def call():
    with open(sys.argv[1], "a") as file:
        file.write(sys.argv[2])

turns.serve(call, name=sys.argv[2])
"""


def state(side):
    """What the kernel says of a side's process: T if it is stopped."""
    status = Path(f"/proc/{side._process.pid}/stat").read_text()
    return status.rpartition(") ")[2][0]


def test_sides_take_turns_and_rest(tmp_path):
    log = tmp_path / "log"
    commands = [[sys.executable, "-c", WRITER, str(log), name] for name in "AB"]
    with turns.started(commands) as (one, other):
        assert (one.about, other.about) == ({"name": "A"}, {"name": "B"})
        for _ in range(2):
            one.call()
            other.call()
        assert (state(one), state(other)) == ("T", "T")
    assert log.read_text() == "ABAB"
    assert len(one.seconds) == 2
    assert all(0 < seconds < 1 for seconds in one.seconds)
    assert all(0 <= seconds < 1 for seconds in one.cpu_seconds)
    # Of a Python program, not of the process with JAX that started it.
    assert 1e6 < one.peak_bytes < 1e8
    assert not Path(f"/proc/{one._process.pid}").exists()


def test_a_side_that_fails_ends_the_comparison():
    with pytest.raises(SystemExit, match="its message is above"):
        turns.Side([sys.executable, "-c", "raise SystemExit"])


def test_too_many_threads_are_refused():
    with pytest.raises(SystemExit, match="--threads=10000"):
        turns.use_cores(10_000)


def test_a_table_is_markdown():
    assert turns.head("a | b") == "| a | b |\n| --- | --- |"
    assert turns.spread([3.0, 1.0, 2.0]) == "2 (1-3)"


def test_our_pipeline_reads_the_files_at_their_size(tmp_path):
    fastmri_loader.write_scans(tmp_path, 1, 4)
    with h5py.File(tmp_path / "file0000000.h5") as file:  # what fastMRI's loader needs
        assert file["kspace"].shape == (4, 640, 368)
        assert file["reconstruction_esc"].shape == (4, 320, 320)
        assert file.attrs["max"] == file["reconstruction_esc"][()].max()
    config = from_dict(fastmri_knee_4x.get_config())
    assert config.train.batch_size == fastmri_loader.BATCH
    source, sampler = sources.open_source(str(tmp_path)), opening.open_sampler(config)
    stream = pipeline.training_batches(source, config, sampler)
    batch = next(stream)
    stream.close()
    assert batch.target.shape == (4, 320, 368, 2)
    assert batch.field == (320, 320)
    assert batch.empty is None or not batch.empty.any()


@pytest.mark.slow
def test_the_network_in_pytorch_is_ours():
    if not TORCH.exists():
        pytest.skip("needs PyTorch in .venv-torch; see benchmarks/pytorch_network.py")
    assert "tiny" in pytorch_network.check(["tiny"], str(TORCH))


@pytest.mark.slow
def test_both_ways_of_the_normal_operator_are_timed(monkeypatch, capsys):
    monkeypatch.setattr(normal_operator, "SIZES", (16,))
    monkeypatch.setattr(normal_operator, "_CALLS", 3)
    normal_operator.main()
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[1] for line in lines[1:]] == ["convolution", "both"]
    image = jnp.ones((1, 16, 16, 2))
    sampled = normal_operator.acquisition(16)
    other = sampled.adjoint(sampled.forward(image))
    np.testing.assert_allclose(sampled.normal(image), other, atol=1e-4)
