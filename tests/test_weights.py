"""The network that comes with the repository."""

import dataclasses
import re

import pytest

from kst_jax.errors import InputError
from kst_jax.evaluation.evaluate import evaluate
from kst_jax.runs import checkpoints
from tests.conftest import ROOT

pytestmark = pytest.mark.usefixtures("full_compilation")

SHIPPED = ROOT / "weights" / "uniform1d_5x"


@pytest.mark.slow
def test_it_scores_what_its_card_says(tmp_path):
    card = (ROOT / "weights" / "README.md").read_text()
    said = re.search(r"`demo:test`.*\| ([\d.]+) \+- .* dB, ([.\d]+) \+-.*\|\n", card)
    _, config, _ = checkpoints.read_parameters(SHIPPED)
    out = dataclasses.replace(config.eval, out=str(tmp_path / "eval"), figures=0)
    report = evaluate(dataclasses.replace(config, eval=out), SHIPPED)
    scores = report["slices"]["normalised"]["reconstruction"]
    assert scores["psnr"]["mean"] == pytest.approx(float(said[1]), abs=0.01)
    assert scores["ssim"]["mean"] == pytest.approx(float(said[2]), abs=0.001)


def test_it_is_not_tested_on_its_own_people(tmp_path):
    _, config, _ = checkpoints.read_parameters(SHIPPED)
    data = dataclasses.replace(config.data, test="demo:train")
    out = dataclasses.replace(config.eval, out=str(tmp_path / "eval"))
    with pytest.raises(InputError, match="was trained on this person"):
        evaluate(dataclasses.replace(config, data=data, eval=out), SHIPPED)


def test_it_is_small():
    size = sum(file.stat().st_size for file in SHIPPED.rglob("*") if file.is_file())
    assert size <= 10_000_000
