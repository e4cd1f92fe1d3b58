"""The authors' checkpoints, as `convert` writes them."""

import jax
import numpy as np
import pytest

from kst_jax import checkpoints, convert
from kst_jax.errors import InputError
from tests.programs import run_here


def test_sizes_are_read_from_the_weights(shared):
    _, config = convert.load(shared / "goldens" / "authors_small.pth", 4, (16, 16))
    assert (config.width, config.mlp, config.refinement_features) == (32, 64, 16)
    layers = config.encoder_layers, config.lr_layers, config.hr_layers
    assert layers == (2, 2, 3)
    assert (config.refinement_layers, config.refinement_kernel) == (4, 3)


def test_command_line_writes_what_was_loaded(shared, tmp_path):
    source = shared / "goldens" / "authors_small.pth"
    done = run_here("kst_jax.convert", source, tmp_path / "out", "--lr_size", 16, 16)
    assert done.returncode == 0, done.stderr
    assert "eval.py" in done.stdout
    params, config, _ = checkpoints.read_parameters(tmp_path / "out")
    wanted, model = convert.load(source, 4, (16, 16))
    assert config.model == model
    assert config.data.size == (32, 32)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    page = tmp_path / "page.pth"
    page.write_text("<html>404</html>")
    done = run_here("kst_jax.convert", page, tmp_path / "out")
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert str(page) in done.stderr
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("state", "message"),
    [
        ({"module.unet.weight": np.zeros((2, 2))}, "unknown weight 'unet.weight'"),
        (
            {
                "module.encoder.layers.0.norm.weight": np.zeros(2),
                "module.encoder.layers.2.norm.weight": np.zeros(2),
            },
            "leave a gap",
        ),
        (
            {
                "module.encoder.layers.0.norm.weight": np.zeros(2),
                "module.encoder.layers.1.norm.weight": np.zeros(3),
            },
            "differ in shape",
        ),
    ],
)
def test_other_networks_are_refused(state, message):
    with pytest.raises(InputError, match=message):
        convert.parameters(state)


@pytest.mark.parametrize(
    "state", [{}, [], {0: np.zeros(2)}, {"encoder_embed_layer.0.weight": 1.0}]
)
def test_what_is_no_state_is_refused(state, monkeypatch):
    found = {"model_state_dict": state}
    monkeypatch.setattr(convert.torch_file, "load", lambda _: found)
    with pytest.raises(InputError, match=r"a\.pth: no 'model_state_dict'"):
        convert.load("a.pth")


def test_a_checkpoint_that_lacks_weights_is_refused(shared, monkeypatch):
    path = shared / "goldens" / "authors_small.pth"
    whole = convert.torch_file.load(path)
    state = {
        name: weight
        for name, weight in whole["model_state_dict"].items()
        if "decoderHR.layers.1.multihead_attn.w_qs" not in name
    }
    monkeypatch.setattr(
        convert.torch_file, "load", lambda _: {"model_state_dict": state}
    )
    with pytest.raises(InputError, match="leave a gap"):
        convert.load(path, 4, (16, 16))
    state = {n: w for n, w in state.items() if "multihead_attn.w_qs" not in n}
    with pytest.raises(InputError, match=r"cross_attention/query/kernel is missing"):
        convert.load(path, 4, (16, 16))
