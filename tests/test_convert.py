"""The authors' checkpoints, as `convert` writes them."""

import functools

import jax
import numpy as np
import pytest

from kst_jax.convert import torch_file
from kst_jax.convert.command import load, parameters
from kst_jax.errors import InputError
from kst_jax.runs import checkpoints
from tests import torch_files
from tests.conftest import AUTHORS_CHECKPOINT
from tests.programs import run_here


def test_sizes_are_read_from_the_weights():
    _, config = load(AUTHORS_CHECKPOINT, 4, (16, 16))
    assert (config.width, config.mlp, config.refinement_features) == (32, 64, 16)
    layers = config.encoder_layers, config.lr_layers, config.hr_layers
    assert layers == (2, 2, 3)
    assert (config.refinement_layers, config.refinement_kernel) == (4, 3)


def test_command_line_writes_what_was_loaded(tmp_path):
    done = run_here(
        "kst-convert", AUTHORS_CHECKPOINT, tmp_path / "out", "--lr_size", 16, 16
    )
    assert done.returncode == 0, done.stderr
    assert "kst-eval" in done.stdout
    params, config, _ = checkpoints.read_parameters(tmp_path / "out")
    wanted, model = load(AUTHORS_CHECKPOINT, 4, (16, 16))
    assert config.model == model
    assert config.data.size == (32, 32)
    jax.tree.map(np.testing.assert_array_equal, params, wanted)


def authors_shapes(layers=(2, 3, 4), width=8, mlp=12, features=3):
    """Weights of the authors' network, by name, as PyTorch has them: (out, in, ...)."""
    found = {}

    def norm(name):
        found.update({f"{name}.weight": (width,), f"{name}.bias": (width,)})

    def layer(name, *shape):
        found.update({f"{name}.weight": shape, f"{name}.bias": shape[:1]})

    def attention(name):
        for part in ("w_qs", "w_ks", "w_vs", "fc"):
            found[f"{name}.{part}.weight"] = (width, width)
        norm(f"{name}.layer_norm")

    layer("encoder_embed_layer.0", width, 2)
    layer("encoder_embed_layer.2", width, width)
    found["pe_layer.div_term"] = (width // 4,)
    for n in range(layers[0]):
        attention(f"encoder.layers.{n}.self_attn")
        layer(f"encoder.layers.{n}.linear1", mlp, width)
        layer(f"encoder.layers.{n}.linear2", width, mlp)
        norm(f"encoder.layers.{n}.norm")
    for grid, count in zip(("LR", "HR"), layers[1:], strict=True):
        for n in range(count):
            name = f"decoder{grid}.layers.{n}"
            if grid == "LR":
                attention(f"{name}.self_attn")
            attention(f"{name}.multihead_attn")
            layer(f"{name}.ffn1.0", mlp, width)
            layer(f"{name}.ffn1.3", width, mlp)
            norm(f"{name}.norm1")
            norm(f"decoder{grid}.{grid}_norm_layers.{n}")
            layer(f"decoder{grid}.{grid}_predict_layers.{n}.0", width, width)
            layer(f"decoder{grid}.{grid}_predict_layers.{n}.2", 2, width)
    layer("decoderHR.HR_embed_layer.0", width, 2)
    layer("decoderHR.HR_embed_layer.2", width, width)
    for n in range(layers[2]):
        convs = f"decoderHR.ConvBlocks.{n}.convs"
        layer(f"{convs}.0", features, 2, 3, 3)
        for place in (2, 4, 6):
            layer(f"{convs}.{place}", features, features, 3, 3)
        layer(f"{convs}.8", 2, features, 1, 1)
    return {f"module.{name}": shape for name, shape in found.items()}


def write_checkpoint(path, state):
    """As torch.save does, each weight with a storage of its own."""
    tensors = {}
    for number, (name, weight) in enumerate(state.items()):
        strides = tuple(stride // weight.itemsize for stride in weight.strides)
        source = torch_files.storage("Float", weight.size, str(number))
        tensors[name] = torch_files.tensor(source, 0, weight.shape, strides)
    return torch_files.write(
        path, {"model_state_dict": tensors}, [w.tobytes() for w in state.values()]
    )


# A weight of each kind, its place here, and where it lies in a stack of layers.
PLACES = [
    ("encoder_embed_layer.0", "embed_token/hidden", ...),
    ("encoder_embed_layer.2", "embed_token/output", ...),
    ("encoder.layers.1.self_attn.w_qs", "encoder/self_attention/query", 1),
    ("encoder.layers.1.self_attn.w_ks", "encoder/self_attention/key", 1),
    ("encoder.layers.0.self_attn.w_vs", "encoder/self_attention/value", 0),
    ("encoder.layers.0.self_attn.fc", "encoder/self_attention/out", 0),
    ("encoder.layers.1.self_attn.layer_norm", "encoder/self_attention/norm", 1),
    ("encoder.layers.1.linear1", "encoder/mlp/mlp/hidden", 1),
    ("encoder.layers.0.linear2", "encoder/mlp/mlp/output", 0),
    ("encoder.layers.1.norm", "encoder/mlp/norm", 1),
    ("decoderLR.layers.2.self_attn.w_ks", "lr_decoder/self_attention/key", 2),
    ("decoderLR.layers.2.multihead_attn.w_qs", "lr_decoder/cross_attention/query", 2),
    ("decoderHR.layers.3.multihead_attn.w_vs", "hr_decoder/cross_attention/value", 3),
    ("decoderHR.layers.3.multihead_attn.fc", "hr_decoder/cross_attention/out", 3),
    ("decoderLR.layers.1.ffn1.0", "lr_decoder/mlp/mlp/hidden", 1),
    ("decoderHR.layers.2.ffn1.3", "hr_decoder/mlp/mlp/output", 2),
    ("decoderLR.layers.1.norm1", "lr_decoder/mlp/norm", 1),
    ("decoderHR.HR_norm_layers.1", "hr_decoder/head/norm", 1),
    ("decoderLR.LR_norm_layers.1", "lr_decoder/head/norm", 1),
    ("decoderLR.LR_predict_layers.2.0", "lr_decoder/head/mlp/hidden", 2),
    ("decoderHR.HR_predict_layers.3.2", "hr_decoder/head/mlp/output", 3),
    ("decoderHR.HR_embed_layer.0", "embed_query/hidden", ...),
    ("decoderHR.HR_embed_layer.2", "embed_query/output", ...),
    ("decoderHR.ConvBlocks.3.convs.0", "hr_decoder/refinement/Conv_0", 3),
    ("decoderHR.ConvBlocks.1.convs.4", "hr_decoder/refinement/Conv_2", 1),
    ("decoderHR.ConvBlocks.2.convs.8", "hr_decoder/refinement/Conv_4", 2),
]


def test_each_weight_finds_its_place(tmp_path):
    rng = np.random.default_rng(0)
    state = {
        name: rng.normal(size=shape).astype("f4")
        for name, shape in authors_shapes().items()
    }
    source = write_checkpoint(tmp_path / "a.pth", state)
    done = run_here("kst-convert", source, tmp_path / "out", "--lr_size", 8, 8)
    assert done.returncode == 0, done.stderr
    params, config, _ = checkpoints.read_parameters(tmp_path / "out")
    model = config.model
    assert (model.encoder_layers, model.lr_layers, model.hr_layers) == (2, 3, 4)
    assert (model.width, model.mlp, model.refinement_features) == (8, 12, 3)
    for theirs, ours, layer in PLACES:
        found = functools.reduce(dict.get, ours.split("/"), params)
        for kind, weight in found.items():
            kept = state[f"module.{theirs}.{'bias' if kind == 'bias' else 'weight'}"]
            if kept.ndim > 1:  # (out, in, rows, columns)
                kept = np.moveaxis(kept, (1, 0), (-2, -1))
            np.testing.assert_array_equal(weight[layer], kept, ours)
    del state["module.pe_layer.div_term"]
    all_of_ours, all_of_theirs = (
        np.sort(np.concatenate([np.ravel(x) for x in jax.tree.leaves(tree)]))
        for tree in (params, state)
    )
    np.testing.assert_array_equal(all_of_ours, all_of_theirs)


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda name: name,
        lambda name: f"module.module.{name}",
        lambda name: f"_orig_mod.module._orig_mod.{name}",
        lambda name: name.replace("encoder.", "encoder._orig_mod.", 1),
    ],
)
def test_names_that_torch_wraps_are_found(wrapped):
    state = {
        name.removeprefix("module."): np.zeros(shape, "f4")
        for name, shape in authors_shapes().items()
    }
    found = parameters({wrapped(name): weight for name, weight in state.items()})
    assert jax.tree.structure(found) == jax.tree.structure(parameters(state))
    with pytest.raises(
        InputError, match=r"encoder\.layers\.0\.norm\.bias' occurs twice"
    ):
        parameters(state | {"module.encoder.layers.0.norm.bias": np.zeros(8)})


def test_weights_that_are_not_finite_are_refused(tmp_path):
    state = {name: np.zeros(shape, "f4") for name, shape in authors_shapes().items()}
    state["module.encoder.layers.1.norm.bias"][3] = np.nan
    source = write_checkpoint(tmp_path / "a.pth", state)
    with pytest.raises(
        InputError, match=r"a\.pth: 1 of .* encoder/mlp/norm/bias are not"
    ):
        load(source, lr_size=(8, 8))


def test_the_names_are_those_of_the_authors():
    state = torch_file.load(AUTHORS_CHECKPOINT)
    shapes = {name: w.shape for name, w in state["model_state_dict"].items()}
    assert shapes == authors_shapes((2, 2, 3), width=32, mlp=64, features=16)


def test_what_is_no_checkpoint_is_refused(tmp_path):
    page = tmp_path / "page.pth"
    page.write_text("<html>404</html>")
    done = run_here("kst-convert", page, tmp_path / "out")
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
        parameters(state)


@pytest.mark.parametrize(
    "state", [{}, [], {0: np.zeros(2)}, {"encoder_embed_layer.0.weight": 1.0}]
)
def test_what_is_no_state_is_refused(state, monkeypatch):
    found = {"model_state_dict": state}
    monkeypatch.setattr(torch_file, "load", lambda _: found)
    with pytest.raises(InputError, match=r"a\.pth: no 'model_state_dict'"):
        load("a.pth")


def test_a_checkpoint_that_lacks_weights_is_refused(monkeypatch):
    whole = torch_file.load(AUTHORS_CHECKPOINT)
    state = {
        name: weight
        for name, weight in whole["model_state_dict"].items()
        if "decoderHR.layers.1.multihead_attn.w_qs" not in name
    }
    monkeypatch.setattr(torch_file, "load", lambda _: {"model_state_dict": state})
    with pytest.raises(InputError, match="leave a gap"):
        load(AUTHORS_CHECKPOINT, 4, (16, 16))
    state = {n: w for n, w in state.items() if "multihead_attn.w_qs" not in n}
    with pytest.raises(InputError, match=r"cross_attention/query/kernel is missing"):
        load(AUTHORS_CHECKPOINT, 4, (16, 16))
