"""Reads PyTorch checkpoints without PyTorch, and without running what is in them.

A `.pth` written by `torch.save` is a zip of raw storages (`<name>/data/<key>`) and one
pickle (`<name>/data.pkl`) that says which tensors view them. A pickle is a program: an
ordinary unpickler runs whatever it names. The one here knows only the instructions that
build plain data, and of functions only those that rebuild tensors; everything else is
refused, and nothing outside this file is ever imported or called.
"""

import dataclasses
import math
import os
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

_DTYPES = {
    "torch FloatStorage": np.dtype(np.float32),
    "torch DoubleStorage": np.dtype(np.float64),
    "torch HalfStorage": np.dtype(np.float16),
    "torch BFloat16Storage": np.dtype(ml_dtypes.bfloat16),
    "torch ComplexFloatStorage": np.dtype(np.complex64),
    "torch ComplexDoubleStorage": np.dtype(np.complex128),
    "torch LongStorage": np.dtype(np.int64),
    "torch IntStorage": np.dtype(np.int32),
    "torch ShortStorage": np.dtype(np.int16),
    "torch CharStorage": np.dtype(np.int8),
    "torch ByteStorage": np.dtype(np.uint8),
    "torch BoolStorage": np.dtype(np.bool_),
}
_DICT = "collections OrderedDict"
_TENSOR = "torch._utils _rebuild_tensor_v2"
_PARAMETER = "torch._utils _rebuild_parameter"
# A metric that numpy computed: a dtype and its bytes, which protocol 2 writes as text.
_SCALARS = ("numpy.core.multiarray scalar", "numpy._core.multiarray scalar")
_SCALAR_DTYPES = {"f4", "f8", "i4", "i8", "b1"}
_LEAVES = (np.ndarray, str, int, float, type(None))

# Pickle instructions that push their argument, or always the same value.
_LITERALS = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE"}
_CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}

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
            f"{_short(error)}). {_COPY_AGAIN}."
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
        root = _root(archive)
        _check_archive(archive, size)
        _check_byte_order(archive, root)
        program = archive.getinfo(f"{root}/data.pkl")
        if program.file_size > _MAX_PICKLE_BYTES:
            raise InputError(
                f"its data.pkl has {program.file_size} bytes, more than any checkpoint "
                f"needs. {_KEEP_WEIGHTS}."
            )
        value = _Unpickler(_Storages(archive, root)).run(archive.read(program))
    _check_plain(value)
    return value


def _root(archive: zipfile.ZipFile) -> str:
    names = archive.namelist()
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
    return root


def _check_archive(archive: zipfile.ZipFile, size: int) -> None:
    """Bound what reading can take to the size of the file itself."""
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise InputError(
            f"has compressed entries, which torch.save never writes. {_RESAVE}."
        )
    if sum(entry.file_size for entry in entries) > size:
        raise InputError(f"its entries claim more bytes than it has. {_COPY_AGAIN}.")


def _check_byte_order(archive: zipfile.ZipFile, root: str) -> None:
    name = f"{root}/byteorder"  # absent before PyTorch 2.1
    if name in archive.namelist() and archive.read(name) != b"little":
        raise InputError(
            "written on a big-endian machine. Re-save it on a little-endian one: "
            "torch.save(torch.load(f, weights_only=True), g)."
        )


@dataclasses.dataclass(frozen=True)
class _Global:
    """A "module name" that the pickle mentions: a word here, never looked up."""

    name: str


@dataclasses.dataclass(frozen=True)
class _Storage:
    dtype: np.dtype
    numel: int
    data: bytes


class _Storages:
    """The raw storages of an archive, each read once."""

    def __init__(self, archive: zipfile.ZipFile, root: str) -> None:
        self._archive = archive
        self._root = root
        self._bytes: dict[str, bytes] = {}

    def find(self, identity: Any) -> _Storage:
        """Look up the storage of an identity ('storage', kind, key, device, numel)."""
        match identity:
            case ("storage", _Global(kind), str(key), _, int(numel)) if kind in _DTYPES:
                dtype, data = _DTYPES[kind], self._read(key)
            case _:
                raise ValueError("a reference to something other than a storage")
        if len(data) != numel * dtype.itemsize:
            raise InputError(
                f"storage {_short(key)} has {len(data)} bytes, which are not the "
                f"announced number of {dtype} values. {_COPY_AGAIN}."
            )
        return _Storage(dtype, numel, data)

    def _read(self, key: str) -> bytes:
        if key not in self._bytes:
            try:
                entry = self._archive.getinfo(f"{self._root}/data/{key}")
            except KeyError:
                raise InputError(
                    f"storage {_short(key)} is missing. {_COPY_AGAIN}."
                ) from None
            self._bytes[key] = self._archive.read(entry)
        return self._bytes[key]


class _Unpickler:
    """A stack machine for the part of pickle protocol 2 that builds plain data.

    Written out rather than derived from `pickle.Unpickler`: there BUILD may set
    attributes of whatever object it is pointed at, one instruction can make the memo
    take gigabytes, and a dict key nested deep enough crashes the interpreter.
    """

    def __init__(self, storages: _Storages) -> None:
        self._storages = storages
        self._stack: list[Any] = []
        self._outer: list[list[Any]] = []  # the stacks that MARK set aside
        self._memo: dict[int, Any] = {}

    def run(self, program: bytes) -> Any:
        """Return the value that the pickle builds."""
        for opcode, argument, _ in pickletools.genops(program):
            if opcode.name in _LITERALS:
                self._stack.append(argument)
            elif opcode.name in _CONSTANTS:
                self._stack.append(_CONSTANTS[opcode.name])
            else:
                self._step(opcode.name, argument)
        return self._stack.pop()

    def _step(self, instruction: str, argument: Any) -> None:
        stack = self._stack
        match instruction:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                self._outer.append(stack)
                self._stack = []
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [stack.pop() for _ in range(int(instruction[-1]))]
                stack.append(tuple(reversed(items)))
            case "TUPLE":
                items = self._pop_to_mark()
                self._stack.append(tuple(items))
            case "APPEND":
                self._extend([stack.pop()])
            case "APPENDS":
                self._extend(self._pop_to_mark())
            case "SETITEM":
                value, key = stack.pop(), stack.pop()
                self._update([key, value])
            case "SETITEMS":
                self._update(self._pop_to_mark())
            case "BINPUT" | "LONG_BINPUT":
                self._memo[argument] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self._memo[argument])
            case "GLOBAL":
                stack.append(_admit(argument))
            case "BINPERSID":
                stack.append(self._storages.find(stack.pop()))
            case "REDUCE":
                arguments, function = stack.pop(), stack.pop()
                stack.append(_REBUILD[function.name](*arguments))
            case "BUILD":  # torch's `_metadata` of a state dict, details of a dtype
                stack.pop()
                if not isinstance(stack[-1], np.dtype):
                    self._top(dict)
            case _:
                raise InputError(
                    f"its pickle has the instruction {instruction}, which tensors and "
                    f"plain containers do not need. {_KEEP_WEIGHTS}."
                )

    def _pop_to_mark(self) -> list:
        items, self._stack = self._stack, self._outer.pop()
        return items

    def _top(self, kind: type) -> Any:
        if not isinstance(self._stack[-1], kind):
            raise ValueError(f"the pickle fills something that is no {kind.__name__}")
        return self._stack[-1]

    def _extend(self, items: list) -> None:
        self._top(list).extend(items)

    def _update(self, items: list) -> None:
        keys, values = items[::2], items[1::2]
        if not all(isinstance(key, str | int) for key in keys):
            raise ValueError("a dict key that is neither text nor a whole number")
        self._top(dict).update(zip(keys, values, strict=True))


def _admit(name: str) -> _Global:
    if name not in _REBUILD and name not in _DTYPES:
        raise InputError(
            f"holds the Python object {_short(name.replace(' ', '.'))}; only tensors "
            f"and plain containers are read. {_KEEP_WEIGHTS}."
        )
    return _Global(name)


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
    numel = math.prod(size)
    last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
    # Elements that repeat would let a small file demand any amount of memory later.
    if (
        min((offset, *size, *stride)) < 0
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
    if code not in _SCALAR_DTYPES:
        raise ValueError(f"a numpy scalar of type {_short(code)}")
    return np.dtype(code).newbyteorder("<")


def _encode(text: str, encoding: str) -> bytes:
    if encoding != "latin1":
        raise ValueError("bytes that are not written as latin1")
    return text.encode("latin1")


def _scalar(dtype: np.dtype, data: bytes) -> float:
    if len(data) != dtype.itemsize:
        raise ValueError("a numpy scalar of another size than its type")
    return np.frombuffer(data, dtype)[0].item()


# What a call in the pickle means here; the names are never looked up.
_REBUILD: dict[str, Callable] = {
    "numpy dtype": _numpy_dtype,
    "_codecs encode": _encode,
    **dict.fromkeys(_SCALARS, _scalar),
    _DICT: lambda: {},
    _TENSOR: _tensor,
    _PARAMETER: lambda tensor, requires_grad, hooks: tensor,
}


def _check_plain(root: Any) -> None:
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


def _short(text: object) -> str:
    """Cut what comes out of the file to a length that fits in a message."""
    text = str(text)
    return text if len(text) <= 100 else f"{text[:100]}..."
