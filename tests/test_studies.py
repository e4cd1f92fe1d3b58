"""The studies of `configs/studies/`, and the tables in `studies/`."""

import dataclasses
import importlib
import json
import shutil

import jax
import numpy as np
import pytest

from kst_jax.configs.studies import (
    paper_fastmri,
    paper_oasis,
    self_supervised,
    small,
)
from kst_jax.study import cells, comparison
from kst_jax.study.protocol import cells_of, config_of
from kst_jax.study.protocol import read as read_study
from tests.conftest import ROOT

pytestmark = pytest.mark.slow

PUBLISHED = ROOT / "studies"


@pytest.mark.parametrize("config", [small, paper_oasis, paper_fastmri])
def test_the_studies_are_whole(config):
    whole = read_study(config.get_config())
    assert whole.order[:2] == ("uniform1d_5x", "gaussian2d_5x")
    for cell in cells_of(whole):
        config = config_of(whole, cell)
        assert config.train.steps * config.train.batch_size >= 2_000


def test_rows_without_targets_differ_in_that_alone():
    study = read_study(self_supervised.get_config())
    configs = {cell.method: config_of(study, cell) for cell in cells_of(study)}
    whole = configs["target"]
    assert whole.train.steps * whole.train.batch_size == 6_000
    for name, weighted in (("self", False), ("self_weighted", True)):
        train = dataclasses.replace(whole.train, supervision="self", weighted=weighted)
        assert configs[name] == dataclasses.replace(whole, train=train)


@pytest.mark.parametrize("name", sorted(p.name for p in PUBLISHED.iterdir()))
def test_published_tables_are_made_from_published_results(name, tmp_path):
    folder = PUBLISHED / name
    config = importlib.import_module(f"kst_jax.configs.studies.{name}")
    shutil.copytree(folder / "results", tmp_path / "results")
    found = read_study(config.get_config())
    comparison.write(found, cells.finished(found, tmp_path), tmp_path)
    assert (tmp_path / "tables.md").read_text() == (folder / "tables.md").read_text()
    made, kept = (
        jax.tree.flatten(json.loads((place / "tables.json").read_text()))
        for place in (tmp_path, folder)
    )
    assert made[1] == kept[1]
    for one, other in zip(made[0], kept[0], strict=True):
        if isinstance(one, str):
            assert one == other
        else:
            np.testing.assert_allclose(one, other, rtol=1e-9, atol=1e-12)
