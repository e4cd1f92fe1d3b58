"""Runs on prepared folders: as on the scans, bit for bit."""

import dataclasses
import hashlib
import shutil
import subprocess
import sys

import jax
import numpy as np
import pytest

from kst_jax.config import AugmentConfig, Config, DataConfig, EvalConfig, TrainConfig
from kst_jax.data import pipeline, prepare
from kst_jax.errors import InputError
from kst_jax.evaluation.evaluate import evaluate
from kst_jax.models.config import KSTConfig
from kst_jax.models.kst import KSpaceTransformer
from kst_jax.runs import integrity
from kst_jax.runs.checkpoints import Checkpoints, write_parameters
from tests.conftest import ROOT
from tests.programs import TINY

pytestmark = pytest.mark.usefixtures("quick_compilation")


@pytest.fixture(scope="module")
def demo(tmp_path_factory):
    out = tmp_path_factory.mktemp("demo") / "out"
    prepare.prepare("demo:train,demo:test", out)
    return out


def config_of(train, **data):
    return Config(
        data=DataConfig(
            train=train,
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


def stream(config, count=7):
    source, test = pipeline.open_sources(config)
    sampler = pipeline.open_sampler(config)
    batches = pipeline.training_batches(source, config, sampler)
    found = [next(batches) for _ in range(count)]
    batches.close()
    return found, list(pipeline.evaluation_batches(test, config, sampler))


def digest(batches):
    leaves = jax.tree.leaves(jax.tree.map(np.asarray, batches))
    return hashlib.sha256(b"".join(x.tobytes() for x in leaves)).hexdigest()


def test_the_stream_is_the_same(demo):
    raw = stream(config_of("demo:train,demo:test"))
    assert digest(stream(config_of(str(demo)))) == digest(raw)
    workers = config_of(str(demo), workers=2, threads=1, prefetch=3)
    assert digest(stream(workers)) == digest(raw)


@pytest.mark.parametrize(
    ("name", "value"), [("workers", -1), ("threads", 0), ("prefetch", 0)]
)
def test_reading_ahead_out_of_range(name, value):
    with pytest.raises(InputError, match=f"data.{name}={value} is out of range"):
        DataConfig(**{name: value})


def test_evaluation_is_the_same(demo, tmp_path):
    config = config_of("demo:train,demo:test")
    model = KSTConfig(
        **{"width": 8, "heads": 2, "mlp": 8, "lr_size": (16, 12)},
        **dict.fromkeys(("encoder_layers", "lr_layers", "hr_layers"), 1),
        refinement_features=4,
    )
    config = dataclasses.replace(config, model=model)
    example = pipeline.example_batch(config, pipeline.open_sampler(config))
    params = jax.jit(KSpaceTransformer(model).init)(jax.random.key(0), example)
    run = tmp_path / "run"
    write_parameters(run, params["params"], config)
    reports, files = [], []
    for number, train in enumerate(("demo:train,demo:test", str(demo))):
        data = dataclasses.replace(config.data, train=train, workers=number)
        out = tmp_path / str(number)
        report = evaluate(
            dataclasses.replace(
                config, data=data, eval=EvalConfig(figures=0, out=str(out))
            ),
            run,
        )
        del report["test"]  # tells the path to the data
        reports.append(report)
        files.append(sorted(p.name for p in (out / "reconstructions").iterdir()))
    assert reports[0] == reports[1]
    assert files[0] == files[1] == [f"{name}.h5" for name in report["per_volume"]]


def test_workers_of_train_py_report_a_damaged_file(demo, tmp_path):
    copy = shutil.copytree(demo, tmp_path / "copy")
    (shard,) = copy.glob("*.array_record")
    shard.write_bytes(bytes(shard.stat().st_size))
    done = subprocess.run(
        [
            *(sys.executable, "train.py", *TINY, f"--workdir={tmp_path / 'run'}"),
            *(f"--config.data.train={copy}", "--config.data.test="),
            "--config.data.workers=2",
        ],
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stderr
    assert f"error: {shard}: record" in done.stderr
    assert "--verify" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_run_may_change_how_it_reads_ahead(tmp_path):
    config = config_of("demo:train")
    Checkpoints(tmp_path, config).close()
    (tmp_path / "checkpoints" / "1").mkdir()
    integrity.note(tmp_path / "checkpoints" / "1")
    Checkpoints(
        tmp_path, config_of("demo:train", workers=2, threads=1, prefetch=3)
    ).close()
    with pytest.raises(InputError, match=r"data\.seed is 0 there and 1 here"):
        Checkpoints(tmp_path, config_of("demo:train", seed=1))
