"""What is no checkpoint of PyTorch, damaged or hostile: told, and nothing of it run."""

import pickle
import struct
import zipfile

import numpy as np
import pytest

from kst_jax.convert import torch_file
from tests.torch_files import (
    FLOATS,
    Call,
    Global,
    Raw,
    Reference,
    encode,
    refusal,
    storage,
    tensor,
    write,
)


@pytest.fixture
def saved(tmp_path):
    def save(*args, **kwargs):
        return write(tmp_path / "model.pth", *args, **kwargs)

    return save


@pytest.mark.parametrize(
    ("code", "data"), [("f8", "1234567"), ("O8", "12345678"), ("V9", "123456789")]
)
def test_other_numpy_scalars_are_refused(saved, code, data):
    dtype = Call(Global("numpy", "dtype"), (code, False, True))
    data = Call(Global("_codecs", "encode"), (data, "latin1"))
    scalar = Call(Global("numpy._core.multiarray", "scalar"), (dtype, data))
    assert "numpy scalar" in refusal(saved([scalar]))


@pytest.mark.parametrize(
    ("module", "name"),
    [
        ("os", "system"),
        ("numpy._core.multiarray", "_reconstruct"),
        ("torch", "QInt8Storage"),
        ("kst_jax.convert.torch_file", "load"),
    ],
)
def test_other_functions_and_classes_are_refused(saved, module, name):
    message = refusal(saved({"x": Global(module, name)}))
    assert f"{module}.{name}" in message
    assert "model_state_dict" in message


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_hostile_pickle_runs_nothing(saved, tmp_path, protocol):
    marker = tmp_path / "marker"

    class Hostile:
        def __reduce__(self):
            return open, (str(marker), "w")

    program = pickle.dumps({"weights": Hostile()}, protocol)
    refusal(saved(None, program=program))
    assert not marker.exists()
    pickle.loads(program)["weights"].close()  # the trap itself works
    assert marker.exists()


def test_attributes_of_functions_and_arrays_cannot_be_set(saved):
    rebuild = Global("torch._utils", "_rebuild_tensor_v2")
    array = encode(tensor(storage("Float", 12), 0, (12,), (1,)))
    for target in (encode(rebuild), array):
        for change in (encode({"__call__": 1}) + pickle.BUILD, b"K\x00K\x01s"):
            poisoned = Raw(target + change)
            assert "no dict" in refusal(saved([poisoned], [FLOATS.tobytes()]))


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (1, (12,), (1,)),
        (0, (3, 4), (5, 1)),
        (-1, (2,), (1,)),
        (11, (2,), (-1,)),
        (0, (-1,), (1,)),
        (0, (-3, -4), (4, 1)),
        (0, (2**62,), (1,)),
        (2**70, (1,), (1,)),
        (0, (13,), (0,)),
        (0, (6, 6), (1, 1)),
    ],
)
def test_views_beyond_their_storage_are_refused(saved, offset, size, stride):
    value = tensor(storage("Float", 12), offset, size, stride)
    assert "outside its storage" in refusal(saved(value, [FLOATS.tobytes()]))


@pytest.mark.parametrize(
    ("offset", "size", "stride"),
    [
        (0, (2.0,), (1,)),
        (0, ("a" * 2**20, 2**40), (1, 1)),  # which a product would repeat
        (None, (2,), (1,)),
        (0, 2, 1),
        (0, (0, 2**62, 2**62), (1, 1, 1)),
    ],
)
def test_views_that_make_no_sense_are_refused(saved, offset, size, stride):
    value = tensor(storage("Float", 12), offset, size, stride)
    assert "damaged" in refusal(saved(value, [FLOATS.tobytes()]))


@pytest.mark.parametrize(("rank", "strides"), [(1, 2), (2, 1), (65, 65)])
def test_sizes_and_strides_must_fit_before_anything_is_computed(saved, rank, strides):
    value = tensor(storage("Float", 12), 0, (1,) * rank, (1,) * strides)
    assert "strides do not fit" in refusal(saved(value, [FLOATS.tobytes()]))


def test_numbers_of_many_digits_are_refused(saved):
    assert torch_file.load(saved(2**2000)) == 2**2000
    assert "instruction LONG4" in refusal(saved(2**20_000))


@pytest.mark.parametrize("metadata", [{"conj": True}, {"neg": True}])
def test_lazily_conjugated_views_are_refused(saved, metadata):
    value = tensor(storage("Float", 12), 0, (12,), (1,), metadata)
    assert "resolve_conj" in refusal(saved(value, [FLOATS.tobytes()]))


@pytest.mark.parametrize("numel", [11, 13, -12])
def test_a_storage_of_another_size_than_announced_is_refused(saved, numel):
    value = tensor(storage("Float", numel), 0, (0,), (1,))
    message = refusal(saved(value, [FLOATS.tobytes()]))
    assert "storage 0 has 48 bytes" in message


def test_a_missing_storage_is_named(saved):
    value = tensor(storage("Float", 12, key="7"), 0, (12,), (1,))
    assert "storage 7 is missing" in refusal(saved(value, [FLOATS.tobytes()]))


@pytest.mark.parametrize(
    "identity",
    [
        "0",
        ("storage", Global("collections", "OrderedDict"), "0", "cpu", 12),
        ("storage", Global("torch", "FloatStorage"), 0, "cpu", 12),
    ],
)
def test_other_references_are_refused(saved, identity):
    value = tensor(Reference(identity), 0, (12,), (1,))
    assert "other than a storage" in refusal(saved(value, [FLOATS.tobytes()]))


@pytest.mark.parametrize(
    "value",
    [
        Global("torch", "FloatStorage"),
        [Global("collections", "OrderedDict")],
        {"x": (storage("Float", 12),)},
    ],
)
def test_nothing_but_plain_values_comes_out(saved, value):
    message = refusal(saved(value, [FLOATS.tobytes()]))
    assert "where a value should be" in message


NESTED = 100_000
LAUGHS = b"](K\x01K\x01eq\x00" + b"](h\x00h\x00eq\x00" * 60


@pytest.mark.parametrize(
    "program",
    [
        b"]" * NESTED + b"a" * (NESTED - 1),
        b"K\x01" + b"\x85" * NESTED,
        b"(" * NESTED + b"t" * NESTED,
        b"}" + b"X\x01\x00\x00\x00a}" * NESTED + b"s" * NESTED,
        b"]q\x00h\x00a",  # a list inside itself
        LAUGHS,  # 60 lists, each twice in the next
    ],
    ids=["lists", "tuples", "marks", "dicts", "loop", "laughs"],
)
def test_endless_nesting_is_refused(saved, program):
    assert "nested deeper" in refusal(saved(None, program=b"\x80\x02" + program + b"."))


@pytest.mark.parametrize(
    ("before", "after", "cause"),
    [
        (b"}", b"Ns.", "dict key"),
        (b"cnumpy\ndtype\n", b"\x85R.", "numpy scalar"),
    ],
)
def test_what_would_be_hashed_or_written_out_endlessly_is_refused(
    saved, before, after, cause
):
    laughs = b"K\x01" + b"q\x00h\x00\x86" * 60  # 60 pairs, each twice in the next
    for nested in (b"K\x01" + b"\x85" * NESTED, laughs):
        assert cause in refusal(saved(None, program=before + nested + after))


@pytest.mark.parametrize(
    "program",
    [
        b"",
        b".",
        b"\x80\x02]",
        b"a.",
        b"t.",
        b"h\x05.",
        b"}(K\x01u.",
        b"K\x01)R.",
        b"ccollections\nOrderedDict\n(K\x01tR.",
        b"X\xff\xff\xff\x7fabc.",
        b"\x8b\xff\xff\xff\x7f\x00.",
        b"X\x02\x00\x00\x00\xff\xfe.",
        b"\xff\xff.",
    ],
)
def test_a_damaged_pickle_is_refused(saved, program):
    # writestr would take an empty program for a missing one
    path = saved(None, program=program or Raw(b"\x80"))
    assert "damaged" in refusal(path)


def test_an_instruction_that_asks_for_gigabytes_gets_none(saved):
    huge = struct.pack("<I", 2**32 - 1)
    program = b"\x80\x02K\x07r" + huge + b"0j" + huge + b"."
    assert "instruction POP" in refusal(saved(None, program=program))
    program = program.replace(b"0j", b"j")
    assert torch_file.load(saved(None, program=program)) == 7
    bytearray8 = b"\x96" + struct.pack("<Q", 2**40) + b"."
    assert "instruction BYTEARRAY8" in refusal(saved(None, program=bytearray8))


def test_a_pickle_beyond_any_checkpoint_is_refused_unread(saved):
    program = b"\x80\x02" + b"N" * (9 << 20) + b"."
    assert "more than any checkpoint" in refusal(saved(None, program=program))


def test_long_names_are_cut_in_messages(saved):
    assert len(refusal(saved(Global("m" * 10_000, "n")))) < 500


def test_a_file_that_is_not_there(tmp_path):
    assert "cannot be read (No such file" in refusal(tmp_path / "none.pth")
    assert "is a folder, not a file" in refusal(tmp_path)


@pytest.mark.parametrize("content", [b"", b"PK\x03\x04"])
def test_not_a_zip(tmp_path, content):
    path = tmp_path / "model.pth"
    path.write_bytes(content)
    assert "not a PyTorch checkpoint" in refusal(path)


def test_a_truncated_file_is_refused_wherever_it_ends(saved):
    path = saved(tensor(storage("Float", 12), 0, (12,), (1,)), [FLOATS.tobytes()])
    content = path.read_bytes()
    for end in range(0, len(content), 7):
        path.write_bytes(content[:end])
        refusal(path)


def test_a_flipped_bit_in_a_storage_is_noticed(saved):
    data = FLOATS.tobytes()
    path = saved(tensor(storage("Float", 12), 0, (12,), (1,)), [data])
    content = path.read_bytes()
    path.write_bytes(content.replace(data, data[:-1] + b"\x01"))
    assert "CRC" in refusal(path)


def test_compressed_entries_are_refused(saved):
    path = saved({"x": 1}, zipped=zipfile.ZIP_DEFLATED)
    assert "compressed" in refusal(path)


def test_entries_that_claim_more_than_the_file_has_are_refused(saved):
    path = saved({"x": 1}, [bytes(1000)])
    content = bytearray(path.read_bytes())
    entry = content.rindex(b"PK\x01\x02", 0, content.rindex(b"small/data/0"))
    content[entry + 20 : entry + 28] = struct.pack("<II", 1 << 30, 1 << 30)
    path.write_bytes(content)
    assert "claim more bytes" in refusal(path)


def test_big_endian_files_are_refused(saved):
    assert "big-endian" in refusal(saved({"x": 1}, order=b"big"))


@pytest.mark.parametrize("entry", ["code/__torch__.py", "constants.pkl"])
def test_torchscript_is_recognised(saved, entry):
    path = saved({"x": 1})
    with zipfile.ZipFile(path, "a", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr(f"small/{entry}", b"class M: ...")
    assert "TorchScript" in refusal(path)


def test_other_zips_are_refused(tmp_path):
    path = tmp_path / "arrays.npz"
    np.savez(path, x=FLOATS)
    assert "not of torch.save" in refusal(path)


def test_the_old_format_is_recognised(tmp_path):
    path = tmp_path / "old.pth"
    # Before 1.6: a magic number, a protocol and a description, one pickle each.
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}]
    path.write_bytes(b"".join(pickle.dumps(part, protocol=2) for part in parts))
    message = refusal(path)
    assert "before 1.6" in message
    assert "weights_only=True" in message


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_torchs_other_formats_are_recognised(tmp_path):
    torch = pytest.importorskip("torch")
    path = tmp_path / "model.pth"
    torch.save({"x": 1}, path, _use_new_zipfile_serialization=False)
    assert "before 1.6" in refusal(path)
    torch.jit.save(torch.jit.script(torch.nn.Linear(2, 2)), path)
    assert "TorchScript" in refusal(path)
