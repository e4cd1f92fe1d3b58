"""Configs: round trip, every file in configs/, every refusal."""

import dataclasses
import importlib
import pathlib

import pytest

from kst_jax.config import Config
from kst_jax.config_dict import as_config_dict, from_dict, from_saved, require_key
from kst_jax.configs import demo
from kst_jax.errors import InputError
from kst_jax.evaluation.evaluate import evaluate
from kst_jax.training.loop import train
from tests.conftest import ROOT

FILES = sorted(
    path.stem
    for path in (ROOT / "configs").glob("*.py")
    if path.stem not in ("__init__", "paper", "saved")
)


def test_round_trip():
    assert from_dict(as_config_dict(Config())) == Config()


@pytest.mark.parametrize("name", FILES)
def test_every_config_loads(name):
    module = importlib.import_module(f"kst_jax.configs.{name}")
    assert isinstance(from_dict(module.get_config()), Config)
    assert f"--config={name}" in module.__doc__ or "make demo" in module.__doc__


def test_paper_settings():
    from kst_jax.configs import paper

    c = from_dict(paper.get_config("fastmri_uniform1d_2.5x"))
    assert (c.mask.kind, c.mask.acceleration) == ("uniform_1d", 2.5)
    assert (c.data.drop_first, c.data.fraction) == (5, 0.25)
    assert dataclasses.asdict(c.model) == dataclasses.asdict(Config().model)
    with pytest.raises(InputError, match="oasis, fastmri"):
        paper.get_config("oasis_radial_5x")


def test_own_config_files_exist_for_all_paper_settings():
    own = [name for name in FILES if name.startswith(("oasis_", "fastmri_"))]
    assert len([name for name in own if "1d_" in name or "2d_" in name]) == 10


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"trian": {}}, r"config has no key 'trian'; valid keys: data, eval, mask"),
        ({"train": {"stepz": 3}}, r"config\.train has no key 'stepz'.*steps"),
        ({"data": {"augment": {"flip": True}}}, r"data\.augment has no key 'flip'"),
        ({"train": {"steps": 0}}, r"train\.steps=0"),
        ({"train": {"batch_size": 6, "accumulate": 4}}, r"a divisor of .*batch_size=6"),
        ({"eval": {"query_devices": 0}}, r"eval\.query_devices=0"),
        ({"eval": {"figures": 25}}, r"eval\.figures=25 .* from 0 to 24"),
        ({"train": {"steps": "many"}}, r"train\.steps='many'"),
        ({"train": {"stages": (0.5, 0.5)}}, r"stages"),
        ({"train": {"stages": (0.5, 0.4, 0.0)}}, r"add to 1"),
        ({"train": {"domain": "wavelet"}}, r"train\.domain='wavelet'"),
        ({"data": {"plane": "oblique"}}, r"axial"),
        ({"data": {"size": (128,)}}, r"data\.size"),
        ({"data": {"crop": (64, 64)}}, r"data\.crop.*data\.size"),
        ({"data": {"fraction": 0.0}}, r"data\.fraction"),
        ({"data": {"slices": (0.7, 0.3)}}, r"data\.slices"),
        ({"mask": {"acceleration": 0.5}}, r"mask\.acceleration=0\.5.*above 1"),
        ({"data": {"size": (60, 128)}}, r"model\.lr_size.*data\.size=\(60, 128\)"),
        ({"eval": {"batch_size": 0}}, r"eval\.batch_size"),
        ({"model": {"remat": "some"}}, r"model\.remat='some'.*none, blocks, layers"),
        (
            {"model": {"name": "unet", "attention": "auto"}},
            r"config\.model has no key 'attention'.*poolings; each network has",
        ),
        ({"mask": {"bank": "masks.npy"}}, r"mask\.bank.*mask\.kind='gaussian_2d'"),
        (
            {"mask": {"kind": "fastmri_random", "calibration": 5}},
            r"mask\.calibration=5.*0 if mask\.kind='fastmri_random'",
        ),
        (
            {"mask": {"kind": "uniform_1d", "center_fraction": 0.04}},
            r"mask\.center_fraction=0\.04.*mask\.calibration, the bank",
        ),
        ({"train": {"layer_weight": -0.1}}, r"train\.layer_weight=-0\.1"),
        ({"train": {"last_weight": 0.0}}, r"train\.last_weight=0\.0.*above 0"),
        ({"data": {"validation": "a.nii"}}, r"data\.validation.*validate_every=0"),
        ({"data": {"seed": -1}}, r"data\.seed=-1.*from 0"),
        ({"data": {"split_seed": -1}}, r"data\.split_seed=-1.*from 0"),
        ({"data": {"draw_seed": 2**32}}, r"data\.draw_seed=4294967296"),
        ({"train": {"seed": 2**32}}, r"train\.seed=4294967296"),
        ({"eval": {"seed": -1}}, r"eval\.seed=-1"),
        (
            {
                "data": {"normalise": "target"},
                "train": {"error": "ssim", "domain": "image"},
            },
            r"data\.normalise='target'.*'measured' if train\.error='ssim'",
        ),
    ],
)
def test_bad_values_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        from_dict(values)


def test_a_run_takes_a_checked_config(tmp_path):
    for run in (train, evaluate):
        with pytest.raises(InputError, match=r"not a ConfigDict: pass .*from_dict"):
            run(demo.get_config(), tmp_path)


def test_a_config_of_version_0_1_means_what_it_meant():
    saved = as_config_dict(Config()).to_dict()
    assert from_saved(saved) == Config()
    for name in ("normalise", "resize", "split_seed", "draw_seed"):
        del saved["data"][name]
    data = from_saved(saved).data
    assert (data.normalise, data.resize) == ("target", "plain")
    saved["data"]["seed"] = 3
    data = from_saved(saved).data
    assert (data.seed, data.split_seed, data.draw_seed) == (3, 3, 3)
    assert from_dict(saved).data.normalise == "measured"


def test_keys_of_the_command_line_are_checked():
    require_key("data.augment.rotation")
    with pytest.raises(InputError, match=r"no key 'trian'; valid keys: .*train"):
        require_key("data.trian")
    with pytest.raises(InputError, match="is a value"):
        require_key("data.train.x")


@pytest.mark.parametrize("name", ["admm", "d5c5", "kunet", "oucr", "unet", "varnet"])
def test_what_is_compared_is_trained_on_as_many_slices(name):
    config = importlib.import_module(f"kst_jax.configs.{name}")
    train = from_dict(config.get_config("oasis_uniform1d_5x")).train
    assert train.steps * train.batch_size == 2_230_000 * 4


def test_configs_have_recipes():
    for path in pathlib.Path(ROOT / "configs").glob("*.py"):
        text = path.read_text()
        assert path.stem == "__init__" or "kst-" in text or "make " in text, path
