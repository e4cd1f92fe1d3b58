"""Checkpoints of PyTorch, read without it: the very values, and views of them."""

import pickle
import zipfile

import ml_dtypes
import numpy as np
import pytest

from kst_jax.convert import torch_file
from tests.conftest import AUTHORS_CHECKPOINT
from tests.torch_files import (
    FLOATS,
    Call,
    Global,
    Raw,
    encode,
    storage,
    tensor,
    write,
)


@pytest.fixture
def saved(tmp_path):
    def save(*args, **kwargs):
        return write(tmp_path / "model.pth", *args, **kwargs)

    return save


def test_plain_containers(saved):
    value = {
        "epoch": 7,
        "sizes": [1, -2, 300, 70_000, -(2**31), 2**31, 2**40, -(2**70)],
        "nested": {0: {"lr": 5e-4, "betas": (0.9, 0.999)}, 1: ()},
        "tuples": [(1,), (1, 2), (1, 2, 3), (1, 2, 3, 4)],
        "flags": (True, False, None),
        "empty": [{}, [], ""],
        "stage": "RM é \u4e2d",
    }
    for program in (None, pickle.dumps(value, protocol=2)):
        got = torch_file.load(saved(value, program=program))
        assert got == value
        assert list(got) == list(value)
        assert type(got["nested"]) is dict
        assert type(got["flags"][0]) is bool


def test_a_state_dict_is_a_plain_dict_without_its_metadata(saved):
    state = Call(
        Global("collections", "OrderedDict"), (), {"_metadata": {"version": 1}}
    )
    program = encode(
        {"model": Raw(encode(state) + b"(" + encode("a") + encode(1) + b"u")}
    )
    got = torch_file.load(saved(None, program=b"\x80\x02" + program + b"."))
    assert got == {"model": {"a": 1}}
    assert type(got["model"]) is dict


@pytest.mark.parametrize(
    ("kind", "dtype"),
    [
        ("Float", np.float32),
        ("Double", np.float64),
        ("Half", np.float16),
        ("BFloat16", ml_dtypes.bfloat16),
        ("ComplexFloat", np.complex64),
        ("ComplexDouble", np.complex128),
        ("Long", np.int64),
        ("Int", np.int32),
        ("Short", np.int16),
        ("Char", np.int8),
        ("Byte", np.uint8),
        ("Bool", np.bool_),
    ],
)
def test_dtypes(saved, kind, dtype):
    data = np.array([[0, 1, 1], [1, 0, 100]]).astype(dtype)
    value = {"x": tensor(storage(kind, 6), 0, (2, 3), (3, 1))}
    got = torch_file.load(saved(value, [data.tobytes()]))["x"]
    assert got.dtype == data.dtype
    np.testing.assert_array_equal(got, data)


@pytest.mark.parametrize(
    ("offset", "size", "stride", "expected"),
    [
        (0, (3, 4), (4, 1), FLOATS.reshape(3, 4)),
        (0, (4, 3), (1, 4), FLOATS.reshape(3, 4).T),
        (5, (2, 3), (4, 1), FLOATS.reshape(3, 4)[1:, 1:]),
        (1, (2, 2), (8, 2), FLOATS.reshape(3, 4)[::2, 1::2]),
        (11, (), (), FLOATS[11]),
        (2, (1, 3), (99, 1), FLOATS[None, 2:5]),
        (0, (2, 2, 3), (6, 3, 1), FLOATS.reshape(2, 2, 3)),
        (3, (3, 0), (1, 1), np.zeros((3, 0))),
        (12, (0,), (1,), np.zeros(0)),
    ],
)
def test_views(saved, offset, size, stride, expected):
    value = tensor(storage("Float", 12), offset, size, stride)
    got = torch_file.load(saved(value, [FLOATS.tobytes()]))
    assert got.shape == np.shape(expected)
    np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize(
    "value",
    [
        np.float64(33.25),
        np.float32(-0.5),
        np.int64(2**40),
        np.int32(-7),
        np.bool_(True),
    ],
)
def test_numpy_scalars_are_plain_numbers(saved, value):
    (got,) = torch_file.load(saved([value]))
    assert (type(got), got) == (type(value.item()), value.item())


def test_a_tensor_without_elements(saved):
    got = torch_file.load(saved(tensor(storage("Float", 0), 0, (0, 5), (5, 1)), [b""]))
    assert got.shape == (0, 5)


def test_a_parameter_is_its_tensor(saved):
    parameter = Global("torch._utils", "_rebuild_parameter")
    inside = tensor(storage("Float", 12), 0, (12,), (1,))
    got = torch_file.load(
        saved(Call(parameter, (inside, True, {})), [FLOATS.tobytes()])
    )
    np.testing.assert_array_equal(got, FLOATS)


def test_views_of_one_storage_share_memory_and_cannot_be_written(saved):
    whole = tensor(storage("Float", 12), 0, (12,), (1,))
    part = tensor(storage("Float", 12), 4, (2,), (3,))
    other = tensor(storage("Float", 12, key="1"), 0, (12,), (1,))
    path = saved([whole, part, other], [FLOATS.tobytes()] * 2)
    whole, part, other = torch_file.load(path)
    assert np.shares_memory(whole, part)
    assert not np.shares_memory(whole, other)
    with pytest.raises(ValueError, match="read-only"):
        part[0] = 1


def test_the_authors_checkpoint():
    checkpoint = torch_file.load(AUTHORS_CHECKPOINT)
    assert checkpoint["stage"] == "RM"
    assert checkpoint["epoch"] == 7
    weights = checkpoint["model_state_dict"]
    assert len(weights) == 165
    assert all(name.startswith("module.") for name in weights)
    assert all(
        w.dtype == np.float32 and np.all(np.isfinite(w)) for w in weights.values()
    )
    embed = weights["module.encoder_embed_layer.0.weight"]
    assert embed.shape == (32, 2)
    with zipfile.ZipFile(AUTHORS_CHECKPOINT) as archive:
        first = np.frombuffer(archive.read("authors_small/data/0"), "<f4")
    np.testing.assert_array_equal(embed.ravel(), first)


def test_equal_to_torch(tmp_path):
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)
    base = torch.randn(4, 5, 6)
    kinds = "float16 float32 float64 bfloat16 complex64 complex128 int8 uint8 int16"
    value = {
        kind: (10 * base).to(getattr(torch, kind))
        for kind in [*kinds.split(), "int32", "int64", "bool"]
    }
    model = torch.nn.Sequential(torch.nn.Conv2d(2, 3, 3), torch.nn.BatchNorm2d(3))
    optimiser = torch.optim.AdamW(model.parameters())
    model(torch.randn(1, 2, 8, 8)).square().sum().backward()
    optimiser.step()
    value |= {
        "views": [base[1:, ::2], base.transpose(0, 2), base[2, 3, 4], base[:, :0]],
        "parameter": torch.nn.Parameter(base[0].T),
        "empty": torch.empty(0, 3),
        "model": model.state_dict(),
        "optimiser": optimiser.state_dict(),
        "plain": (1, 2.5, None, True, "text", [2**70]),
    }
    path = tmp_path / "model.pth"
    torch.save(value, path)
    expected = torch.load(path, weights_only=True)
    got = torch_file.load(path)
    assert_same(torch, got, expected)
    assert got["views"][0].strides == tuple(4 * n for n in base[1:, ::2].stride())


def assert_same(torch, got, expected):
    if isinstance(expected, dict):
        assert list(got) == list(expected)
        for key in expected:
            assert_same(torch, got[key], expected[key])
    elif isinstance(expected, list | tuple):
        assert type(got) is type(expected)
        for a, b in zip(got, expected, strict=True):
            assert_same(torch, a, b)
    elif isinstance(expected, torch.Tensor):
        expected = expected.detach()
        assert str(got.dtype) == str(expected.dtype).removeprefix("torch.")
        assert got.shape == tuple(expected.shape)
        if expected.dtype == torch.bfloat16:
            got, expected = got.astype(np.float32), expected.float()
        np.testing.assert_array_equal(got, expected.numpy())
    else:
        assert got == expected
        assert type(got) is type(expected)
