"""Folders of runs: what is read back, and what is refused."""

import dataclasses
import json

import jax
import numpy as np
import pytest

from kst_jax import checkpoints
from kst_jax.config import Config, DataConfig, KSTConfig
from kst_jax.errors import InputError

CONFIG = Config(data=DataConfig(size=(32, 32)), model=KSTConfig(lr_size=(16, 16)))
PARAMS = {"a": {"kernel": np.arange(6.0, dtype=np.float32).reshape(2, 3)}}


def test_written_parameters_are_read_back(tmp_path):
    checkpoints.write_parameters(tmp_path / "out", PARAMS, CONFIG)
    params, config, step = checkpoints.read_parameters(tmp_path / "out")
    jax.tree.map(np.testing.assert_array_equal, params, PARAMS)
    assert (config, step) == (CONFIG, 0)
    assert checkpoints.read_config(tmp_path / "out") == CONFIG


def test_a_folder_with_checkpoints_is_not_written_again(tmp_path):
    checkpoints.write_parameters(tmp_path, PARAMS, CONFIG)
    with pytest.raises(InputError, match="holds checkpoints already"):
        checkpoints.write_parameters(tmp_path, PARAMS, CONFIG)


def test_no_checkpoint(tmp_path):
    with pytest.raises(InputError, match=r"no checkpoint here.*train\.py"):
        checkpoints.read_parameters(tmp_path)
    with pytest.raises(InputError, match=r"config\.json: not found"):
        checkpoints.read_config(tmp_path)


def test_a_damaged_checkpoint_is_refused(tmp_path):
    checkpoints.write_parameters(tmp_path, PARAMS, CONFIG)
    for path in (tmp_path / "checkpoints" / "0" / "params").rglob("*"):
        if path.is_file():
            path.write_bytes(path.read_bytes()[:10])
    with pytest.raises(InputError, match="cannot be read"):
        checkpoints.read_parameters(tmp_path)


def test_a_damaged_config_is_refused(tmp_path):
    (tmp_path / "config.json").write_text('{"data": ')
    with pytest.raises(InputError, match=r"config\.json: cannot be read"):
        checkpoints.read_config(tmp_path)
    (tmp_path / "config.json").write_text(json.dumps({"data": {"sise": [1, 2]}}))
    with pytest.raises(InputError, match=r"no key 'sise'; valid keys: .*size"):
        checkpoints.read_config(tmp_path)


def test_the_first_difference_between_models_is_named():
    wider = dataclasses.replace(CONFIG, model=KSTConfig(width=64, lr_size=(16, 16)))
    with pytest.raises(InputError, match=r"model\.width is 256 there and 64 here"):
        checkpoints.require_same_model(CONFIG, wider, "runs/x")
    checkpoints.require_same_model(CONFIG, CONFIG, "runs/x")
