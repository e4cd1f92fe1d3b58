"""Files as torch.save lays them out, written by hand.

So tests of the reader need no PyTorch, and can write what it never would.
"""

import collections
import pickle
import zipfile

import numpy as np
import pytest

from kst_jax.convert import torch_file
from kst_jax.errors import InputError

FLOATS = np.arange(12, dtype=np.float32)


class Global(collections.namedtuple("Global", "module name")):
    """A function or class that the pickle names."""


class Call(collections.namedtuple("Call", "function arguments state", defaults=[None])):
    """A function that the pickle calls, and the state that BUILD then sets."""


class Reference(collections.namedtuple("Reference", "identity")):
    """A persistent id, which is how a tensor names its storage."""


class Raw(bytes):
    """Pickle instructions as they are."""


def encode(value):
    match value:
        case Raw():
            return value
        case Global(module, name):
            return f"c{module}\n{name}\n".encode()
        case Call(function, arguments, None):
            return encode(function) + encode(arguments) + pickle.REDUCE
        case Call(function, arguments, state):
            called = encode(Call(function, arguments))
            return called + encode(state) + pickle.BUILD
        case Reference(identity):
            return encode(identity) + pickle.BINPERSID
        case dict():
            items = b"".join(encode(k) + encode(v) for k, v in value.items())
            return b"}(" + items + b"u"
        case list():
            return b"](" + b"".join(map(encode, value)) + b"e"
        case tuple():
            return b"(" + b"".join(map(encode, value)) + b"t"
        case _:
            return pickle.dumps(value, protocol=2)[2:-1]


def storage(kind, numel, key="0"):
    return Reference(("storage", Global("torch", f"{kind}Storage"), key, "cpu", numel))


def tensor(source, offset, size, stride, *metadata):
    hooks = Call(Global("collections", "OrderedDict"), ())
    return Call(
        Global("torch._utils", "_rebuild_tensor_v2"),
        (source, offset, size, stride, False, hooks, *metadata),
    )


def write(path, value, storages=(), program=None, order=b"little", zipped=0):
    """A file as torch.save writes it; `storages` holds the bytes of 0, 1, ..."""
    program = program or b"\x80\x02" + encode(value) + b"."
    with zipfile.ZipFile(path, "w", zipped) as archive:
        archive.writestr("small/data.pkl", program)
        archive.writestr("small/byteorder", order)
        for key, data in enumerate(storages):
            archive.writestr(f"small/data/{key}", data)
        archive.writestr("small/version", b"3\n")
    return path


def refusal(path):
    """The message of a file that is refused, which names it and ends with a remedy."""
    with pytest.raises(InputError) as caught:
        torch_file.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: ")
    assert message.endswith(".")
    return message
