"""Threads and worker processes that prepare batches: the same batches, clear errors."""

import hashlib
import subprocess
import sys

import jax
import numpy as np
import pytest

from kst_jax.config import Config, TrainConfig
from kst_jax.data import opening, pipeline
from kst_jax.data_config import AugmentConfig, DataConfig
from kst_jax.errors import InputError
from kst_jax.models.config import KSTConfig
from kst_jax.runs import integrity
from kst_jax.runs.checkpoints import Checkpoints
from tests.conftest import ROOT
from tests.programs import TINY
from tests.scans import write_h5

pytestmark = pytest.mark.slow


def config_of(**data):
    return Config(
        data=DataConfig(
            train="demo:train,demo:test",
            size=(32, 24),
            crop=(176, 176),
            pad=True,
            slices=(0.4, 0.6),
            test_fraction=0.5,
            augment=AugmentConfig(rotation=10.0),
            **data,
        ),
        train=TrainConfig(batch_size=3),
        model=KSTConfig(lr_size=(16, 12)),
    )


def digest_of_stream(config):
    source, test = opening.open_sources(config)
    sampler = opening.open_sampler(config)
    batches = pipeline.training_batches(source, config, sampler)
    found = [next(batches) for _ in range(7)]
    batches.close()
    found += pipeline.evaluation_batches(test, config, sampler)
    leaves = jax.tree.leaves(jax.tree.map(np.asarray, found))
    return hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest()


def test_the_stream_is_the_same():
    workers = config_of(workers=2, threads=1, prefetch=3)
    assert digest_of_stream(workers) == digest_of_stream(config_of())


@pytest.mark.parametrize(
    ("name", "value"), [("workers", -1), ("threads", 0), ("prefetch", 0)]
)
def test_out_of_range(name, value):
    with pytest.raises(InputError, match=f"data.{name}={value} is out of range"):
        DataConfig(**{name: value})


def test_workers_of_train_py_report_a_damaged_file(tmp_path):
    bad = np.ones((20, 24, 24), "c8")
    bad[:, 3, 3] = np.nan
    write_h5(tmp_path / "a.h5", bad)
    done = subprocess.run(
        [
            *(sys.executable, "train.py", *TINY, f"--workdir={tmp_path / 'run'}"),
            *(f"--config.data.train={tmp_path / 'a.h5'}", "--config.data.workers=2"),
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert f"error: {tmp_path / 'a.h5'}: slice" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_may_change_how_it_reads_ahead(tmp_path):
    Checkpoints(tmp_path, config_of()).close()
    (tmp_path / "checkpoints" / "1").mkdir()
    integrity.note(tmp_path / "checkpoints" / "1")
    Checkpoints(tmp_path, config_of(workers=2, threads=1, prefetch=3)).close()
    with pytest.raises(InputError, match=r"data\.seed is 0 there and 1 here"):
        Checkpoints(tmp_path, config_of(seed=1))
