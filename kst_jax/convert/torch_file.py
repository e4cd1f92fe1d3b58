"""Reads PyTorch checkpoints without PyTorch, and without running what is in them.

A `.pth` written by `torch.save` is a zip of raw storages (`<name>/data/<key>`) and one
pickle (`<name>/data.pkl`) that says which tensors view them. A pickle is a program: an
ordinary unpickler runs whatever it names. The one here keeps the instructions that
build plain data, and of functions only those that rebuild tensors. It refuses all else,
and neither imports nor calls anything outside this file.
"""

import dataclasses
import io
import math
import os
import pickle
import pickletools
import zipfile
from collections.abc import Callable
from typing import IO, Any

import ml_dtypes
import numpy as np

from kst_jax.errors import InputError
from kst_jax.programs import files

# Bounds on what a file may ask for. A checkpoint spends about 130 bytes of pickle on a
# tensor and nests a handful of levels.
_MAX_PICKLE_BYTES = 8 << 20
_MAX_VALUES = 1_000_000
_MAX_DEPTH = 64
_MAX_RANK = 64  # numpy's own

_LEGACY_MAGIC = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19"  # torch < 1.6, no zip
_LEAVES = (np.ndarray, str, int, float, type(None))

_RESAVE = (
    "Re-save it with a recent PyTorch: torch.save(torch.load(f, weights_only=True), g)"
)
_KEEP_WEIGHTS = (
    "If you trust the file, keep its weights alone with PyTorch: torch.save("
    "{'model_state_dict': torch.load(f, weights_only=False)['model_state_dict']}, g)"
)
_COPY_AGAIN = "Download or copy it again"


def load(path: str | os.PathLike) -> Any:
    """Load a file written by `torch.save` in PyTorch 1.6 or later.

    Returns:
      What was saved, of dict, list, tuple, str, int, float, bool and None (numpy's
      scalars among them), with numpy arrays for tensors and parameters (bfloat16 as
      `ml_dtypes.bfloat16`). Arrays are read-only, and views of one storage share its
      memory as they do in PyTorch.

    Raises:
      InputError: the file cannot be opened, is damaged, is of another format, or holds
        anything else than the above.
    """
    files.require_ordinary(path)
    try:
        with open(path, "rb") as file:
            return _load(file)
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    except OSError as error:
        raise InputError(
            f"{path}: cannot be read ({error.strerror or error}). Check that the path "
            "is right and the file whole."
        ) from error
    except Exception as error:  # a damaged zip or pickle can raise nearly any
        raise InputError(
            f"{path}: damaged PyTorch file ({type(error).__name__}: "
            f"{_short(str(error))}). {_COPY_AGAIN}."
        ) from error


def _load(file: IO[bytes]) -> Any:
    size = os.fstat(file.fileno()).st_size
    if file.read(len(_LEGACY_MAGIC)) == _LEGACY_MAGIC:
        raise InputError(f"saved in the format of PyTorch before 1.6. {_RESAVE}.")
    if not zipfile.is_zipfile(file):
        raise InputError(
            f"not a PyTorch checkpoint (no complete zip archive). {_COPY_AGAIN}, or "
            "check that it was written by torch.save."
        )
    with zipfile.ZipFile(file) as archive:
        root = _checked_root(archive, size)
        program = archive.getinfo(f"{root}/data.pkl")
        if program.file_size > _MAX_PICKLE_BYTES:
            raise InputError(
                f"its data.pkl has {program.file_size} bytes, more than any checkpoint "
                f"needs. {_KEEP_WEIGHTS}."
            )
        value = _Unpickler(archive, root).load()
    _require_plain(value)
    return value


def _checked_root(archive: zipfile.ZipFile, size: int) -> str:
    """The folder in the archive, which is torch.save's and no larger than its file."""
    names, entries = archive.namelist(), archive.infolist()
    roots = [n.removesuffix("/data.pkl") for n in names if n.endswith("/data.pkl")]
    if len(roots) != 1:
        raise InputError(
            "a zip archive, but not of torch.save (no single data.pkl). Give the "
            ".pth that the training wrote."
        )
    (root,) = roots
    if any(n.startswith((f"{root}/code/", f"{root}/constants.pkl")) for n in names):
        raise InputError(
            "a TorchScript archive, a program and not a checkpoint. Save its weights "
            "with PyTorch: torch.save(torch.jit.load(f).state_dict(), g)."
        )
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError(
            f"has compressed entries, which torch.save never writes. {_RESAVE}."
        )
    if sum(entry.file_size for entry in entries) > size:
        raise InputError(f"its entries claim more bytes than it has. {_COPY_AGAIN}.")
    order = f"{root}/byteorder"  # absent before PyTorch 2.1
    if order in names and archive.read(order) != b"little":
        raise InputError(
            "written on a big-endian machine. Re-save it on a little-endian one: "
            "torch.save(torch.load(f, weights_only=True), g)."
        )
    return root


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    numel: int
    data: bytes


def _tensor(
    storage: _Storage,
    offset: int,
    size: tuple[int, ...],
    stride: tuple[int, ...],
    requires_grad: bool,
    hooks: dict,
    metadata: dict | None = None,
) -> np.ndarray:
    """View a storage; offset and stride count elements, as in PyTorch."""
    if metadata:
        raise InputError(
            "holds a tensor that is a conjugate or negative view. Save "
            "tensor.resolve_conj().resolve_neg() in its place."
        )
    if len(size) != len(stride) or len(size) > _MAX_RANK:
        raise ValueError("a tensor whose sizes and strides do not fit")
    numbers = (offset, *size, *stride)
    if not all(isinstance(number, int) for number in numbers):  # text can be multiplied
        raise ValueError("a tensor whose sizes are no whole numbers")
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # Elements that repeat would let a small file demand any amount of memory later.
    if (
        min(numbers) < 0
        or numel > storage.numel
        or (numel > 0 and last >= storage.numel)
    ):
        raise InputError(f"a tensor reaches outside its storage. {_COPY_AGAIN}.")
    itemsize = storage.dtype.itemsize
    return np.ndarray(
        size,
        storage.dtype,
        buffer=storage.data,
        offset=offset * itemsize,
        strides=[step * itemsize for step in stride],
    )


def _numpy_dtype(code: str, *_: bool) -> np.dtype:
    if code not in ("f4", "f8", "i4", "i8", "b1"):
        raise ValueError("a numpy scalar of another type than a number's")
    return np.dtype(code).newbyteorder("<")


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("bytes that are not written as latin1")
    return text.encode("latin1")


def _scalar(dtype: np.dtype, data: bytes) -> float:
    if len(data) != dtype.itemsize:
        raise ValueError("a numpy scalar of another size than its type")
    return np.frombuffer(data, dtype)[0].item()


# What the names in a pickle mean here; none is looked up. A metric that numpy computed
# is a dtype and its bytes, which protocol 2 writes as text.
_NAMES: dict[str, np.dtype | Callable] = {
    "torch.FloatStorage": np.dtype(np.float32),
    "torch.DoubleStorage": np.dtype(np.float64),
    "torch.HalfStorage": np.dtype(np.float16),
    "torch.BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch.ComplexFloatStorage": np.dtype(np.complex64),
    "torch.ComplexDoubleStorage": np.dtype(np.complex128),
    "torch.LongStorage": np.dtype(np.int64),
    "torch.IntStorage": np.dtype(np.int32),
    "torch.ShortStorage": np.dtype(np.int16),
    "torch.CharStorage": np.dtype(np.int8),
    "torch.ByteStorage": np.dtype(np.uint8),
    "torch.BoolStorage": np.dtype(np.bool_),
    "torch._utils._rebuild_tensor_v2": _tensor,
    "torch._utils._rebuild_parameter": lambda tensor, requires_grad, hooks: tensor,
    "collections.OrderedDict": lambda: {},
    "numpy.dtype": _numpy_dtype,
    "numpy.core.multiarray.scalar": _scalar,
    "numpy._core.multiarray.scalar": _scalar,
    "_codecs.encode": _encode,
}


class _Instructions(dict):
    """What a pickle may do, by the instruction's code."""

    def __missing__(self, code: int) -> Callable:
        names = {ord(opcode.code): opcode.name for opcode in pickletools.opcodes}
        raise InputError(
            f"its pickle has the instruction {names[code]}, which tensors and "
            f"plain containers do not need. {_KEEP_WEIGHTS}."
        )


_KEPT = (
    *(pickle.PROTO, pickle.STOP, pickle.MARK, pickle.GLOBAL, pickle.REDUCE),
    *(pickle.NONE, pickle.NEWTRUE, pickle.NEWFALSE, pickle.LONG1, pickle.BINFLOAT),
    *(pickle.BININT, pickle.BININT1, pickle.BININT2, pickle.BINUNICODE),
    *(pickle.EMPTY_TUPLE, pickle.TUPLE, pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3),
    *(pickle.EMPTY_LIST, pickle.APPEND, pickle.APPENDS, pickle.EMPTY_DICT),
    *(pickle.BINPUT, pickle.LONG_BINPUT, pickle.BINGET, pickle.LONG_BINGET),
    pickle.BINPERSID,
)


# The one in Python, whose instructions can be taken away. In the one in C, BUILD sets
# attributes of any object, one LONG_BINPUT can make the memo take gigabytes, and
# hashing a dict key that is nested deeply crashes the interpreter.
class _Unpickler(pickle._Unpickler):
    """Builds plain data; `load` returns it."""

    stack: list[Any]
    pop_mark: Callable[[], list[Any]]
    dispatch = _Instructions(
        {code: pickle._Unpickler.dispatch[code] for (code,) in _KEPT}
    )

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        super().__init__(io.BytesIO(archive.read(f"{root}/data.pkl")))
        self._archive, self._root = archive, root
        self._storages: dict[str, bytes] = {}

    def find_class(self, module: str, name: str) -> Any:
        full = f"{module}.{name}"
        if full not in _NAMES:
            raise InputError(
                f"holds the Python object {_short(full)}; only tensors and plain "
                f"containers are read. {_KEEP_WEIGHTS}."
            )
        return _NAMES[full]

    def persistent_load(self, identity: Any) -> _Storage:
        match identity:
            case ("storage", np.dtype() as dtype, str(key), _, int(numel)):
                data = self._read(key)
            case _:
                raise ValueError("a reference to something other than a storage")
        if len(data) != numel * dtype.itemsize:
            raise InputError(
                f"storage {_short(key)} has {len(data)} bytes, which are not the "
                f"announced number of {dtype} values. {_COPY_AGAIN}."
            )
        return _Storage(dtype, numel, data)

    def _read(self, key: str) -> bytes:
        name = f"{self._root}/data/{key}"
        if name not in self._archive.namelist():
            raise InputError(f"storage {_short(key)} is missing. {_COPY_AGAIN}.")
        return self._storages.setdefault(key, self._archive.read(name))

    def _set(self, items: list) -> None:
        keys, values = items[::2], items[1::2]
        if not all(isinstance(key, str | int) for key in keys):
            raise ValueError("a dict key that is neither text nor a whole number")
        if not isinstance(self.stack[-1], dict):
            raise ValueError("the pickle fills something that is no dict")
        self.stack[-1].update(zip(keys, values, strict=True))

    def load_setitem(self) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._set([key, value])

    def load_setitems(self) -> None:
        self._set(self.pop_mark())

    def load_build(self) -> None:
        """Leaves out torch's `_metadata` of a state dict, and details of a dtype."""
        self.stack.pop()
        if not isinstance(self.stack[-1], dict | np.dtype):
            raise ValueError("the pickle sets the state of something that is no dict")

    dispatch[pickle.SETITEM[0]] = load_setitem
    dispatch[pickle.SETITEMS[0]] = load_setitems
    dispatch[pickle.BUILD[0]] = load_build


def _require_plain(root: Any) -> None:
    """Refuse what callers could not walk: loops, endless nesting, odd objects."""
    pending, seen = [(root, 0)], 0
    while pending:
        value, depth = pending.pop()
        seen += 1
        if depth > _MAX_DEPTH or seen + len(pending) > _MAX_VALUES:
            raise InputError(
                f"is nested deeper than {_MAX_DEPTH} levels or has more than "
                f"{_MAX_VALUES} values. {_KEEP_WEIGHTS}."
            )
        if isinstance(value, dict):
            pending.extend((item, depth + 1) for item in value.values())
        elif isinstance(value, list | tuple):
            pending.extend((item, depth + 1) for item in value)
        elif not isinstance(value, _LEAVES):
            raise ValueError("a storage or a function where a value should be")


def _short(text: str) -> str:
    """Cut what comes out of the file to a length that fits in a message."""
    return text if len(text) <= 100 else f"{text[:100]}..."
