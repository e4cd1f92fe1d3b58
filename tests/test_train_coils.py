"""A network for several coils, from training to a measured scan, as users run it."""

import json

import h5py
import numpy as np
import pytest

from kst_jax.birdcage import birdcage
from tests import fastmri_files
from tests.programs import run_here

SIZE = (24, 24)
SETTINGS = """
from kst_jax.configs import demo


def get_config():
    config = demo.get_config()
    config.data.update(size=(24, 24), crop=(208, 208), slices=(0.45, 0.55))
    config.data.coils.update(count=2, sets=2, calibration=16)
    config.mask.update(kind="uniform_1d", acceleration=3.0)
    config.model.update(
        width=8, heads=2, mlp=8, encoder_layers=1, lr_layers=1, hr_layers=1,
        lr_size=(6, 6), refinement_features=4, residual_spectrum=0.1,
    )
    config.train.update(steps=2, batch_size=2, stages=(0.0, 0.0, 1.0), image_every=2)
    config.train.warmup_steps = 0
    return config
"""


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    (folder / "coils.py").write_text(SETTINGS)
    options = f"--config={folder}/coils.py", f"--workdir={folder}/run"
    for program in ("kst-train", "kst-eval"):
        done = run_here(program, *options)
        assert done.returncode == 0, done.stderr
    return folder / "run"


@pytest.mark.slow
def test_scores_and_images_of_several_coils(run):
    found = json.loads((run / "eval" / "metrics.json").read_text())
    assert np.isfinite(found["slices"]["input"]["reconstruction"]["psnr"]["mean"])


@pytest.mark.slow
def test_a_measured_scan_of_more_coils_is_reconstructed(run, tmp_path):
    images = fastmri_files.slices_of("demo:test", SIZE, (0.5, 0.54))
    maps = birdcage(3, SIZE, 5)
    kspace = fastmri_files.fft(images[:, None] * maps)
    mask = np.zeros(24, bool)
    mask[::3] = mask[5:19] = True
    fastmri_files.write(tmp_path / "scan.h5", kspace, SIZE, mask=mask)
    done = run_here("kst-reconstruct", run, tmp_path / "scan.h5", tmp_path / "out")
    assert done.returncode == 0, done.stderr
    with h5py.File(tmp_path / "out" / "scan.h5") as file:
        found = file["reconstruction"][:]
    assert found.shape == images.shape
    # The untrained network changes little: consistency brings it near the image.
    error = np.linalg.norm(found - images) / np.linalg.norm(images)
    assert error < 0.3


@pytest.mark.slow
def test_scans_of_fewer_coils_are_refused(run, tmp_path):
    kspace = np.ones((1, 24, 24), np.complex64)
    mask = np.arange(24) % 3 == 0
    fastmri_files.write(tmp_path / "scan.h5", kspace, SIZE, mask=mask)
    done = run_here("kst-reconstruct", run, tmp_path / "scan.h5", tmp_path / "out")
    assert done.returncode == 1
    assert "of one coil, but the network was trained on 2" in done.stderr
    assert not (tmp_path / "out").exists()
