"""``.pth`` files: what old versions of torch wrote, and files that are damaged, lie, or ask for something."""

from __future__ import annotations

import contextlib
import io
import os
import pickle
import time
import zipfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from torch_files import FOUR, ORDERED, Call, Name, Outside, legacy_file, pickled, storage, tensor, zip_file

from theano_mgpu.store import ParameterStore
from theano_mgpu.weights.pth_reader import read_pth

UTILS = "torch._utils"
REFERENCE = Path(__file__).parents[1] / "reference" / "weights_torch"


@pytest.fixture
def path(tmp_path):
    return tmp_path / "weights.pth"


@pytest.fixture
def four():
    """A store of one parameter of four numbers."""
    store = ParameterStore()
    store.param("p", (4,), -1.0)
    return store


def read(path, data):
    path.write_bytes(data)
    return read_pth(path)


def refused(store, path, data, found):
    """Loading is refused with these words, at once, and changes nothing."""
    path.write_bytes(data)
    before, start = store.checksum(), time.perf_counter()
    with pytest.raises(ValueError, match=rf"(?s)load\('{path}'\): .*{found}.*"):
        store.load(path, layout="torch")
    assert store.checksum() == before
    assert time.perf_counter() - start < 5


BOTH = pytest.mark.parametrize("whole", [zip_file, legacy_file], ids=["zip", "legacy"])

# What versions of torch wrote, after their ``__reduce__`` methods: torch.load of 2.13 reads each to the same numbers.
OLD = {
    "tensor_of_0.3": Call(Name(UTILS, "_rebuild_tensor"), (storage(), 0, Call(Name("torch", "Size"), ((4,),)), (1,))),
    "parameter": Call(Name(UTILS, "_rebuild_parameter"), (tensor(), True, Call(ORDERED, ()))),
    "parameter_of_0.3": Call(
        Name("torch.nn.parameter", "Parameter"), (), (tensor(), None, Call(ORDERED, ()), True, False), pickle.NEWOBJ
    ),
    "saved_on_a_gpu": tensor(of=storage(module="torch.cuda")),
    "part_of_a_storage": tensor((2,), of=storage(part=("9", 1, 2))),
}


@BOTH
@pytest.mark.parametrize("name", OLD)
def test_what_older_versions_wrote_is_read(path, whole, name):
    # Python 2 made ordered dictionaries of lists of pairs, with versions of modules as an attribute.
    state = Call(ORDERED, ([["p", OLD[name]]],), {"_metadata": {"": {"version": 1}}})
    array = read(path, whole(pickled(state))).arrays["p"]
    np.testing.assert_array_equal(array, [1, 2] if "part" in name else [0, 1, 2, 3])
    assert array.dtype == "float32"


@BOTH
def test_any_view_is_read_as_numpy_would(path, whole):
    content = read(path, whole(pickled({"p": tensor((2, 3, 1), (1, 0, 2**61), 1), "empty": tensor((3, 0), (1, 1))})))
    np.testing.assert_array_equal(content.arrays["p"][:, :, 0], [[1, 1, 1], [2, 2, 2]])
    assert content.arrays["empty"].shape == (3, 0)


# Files that ask for something


class Asks:
    """Pickled by Python's own pickler as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = (function, arguments)

    def __reduce__(self):
        return self.call


def asking(function, *arguments, protocol=2):
    return pickle.dumps({"p": Asks(function, *arguments)}, protocol)


@BOTH
@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"(posix|nt)\.system"),
        (eval, r"builtins\.eval"),
        (getattr, r"builtins\.getattr"),
        (os.path.exists, r"(genericpath|posixpath|ntpath)\.exists"),
    ],
    ids=["system", "eval", "getattr", "exists"],
)
def test_what_a_file_asks_for_is_named_and_not_executed(four, path, tmp_path, whole, protocol, function, name):
    witness = tmp_path / "executed"
    argument = f"touch {witness}" if function is os.system else f"open({str(witness)!r}, 'w')"
    data = whole(asking(function, argument, protocol=protocol))
    refused(four, path, data, rf"asks for {name}, which is no part of a state dict; nothing of it was executed")
    assert not witness.exists()


def test_the_witness_would_have_been_written(tmp_path):
    """By Python's own unpickler: the test above tests something."""
    pickle.loads(asking(eval, f"open({str(tmp_path / 'executed')!r}, 'w').close()"))
    assert (tmp_path / "executed").exists()


@BOTH
def test_all_that_a_file_asks_for_is_named_also_beside_the_weights(four, path, whole):
    names = [Name("os", "system"), Name("numpy.core.multiarray", "scalar"), Name("x" * 500, "y")]
    state = pickled({"state_dict": {"p": tensor()}, "best": [Call(name, ("a",), {"b": 1}) for name in names]})
    refused(four, path, whole(state), r"asks for os\.system, numpy\.core\.multiarray\.scalar, x{100}\.\.\., which")


def test_a_pickle_without_torchs_frame_is_named_too(four, path):
    refused(four, path, asking(os.system, "true"), r"asks for (posix|nt)\.system")


def nested(depth):
    """A tuple of twice the tuple before: to hash or print it takes 2 ** depth steps."""
    twice = b"".join(pickle.BINPUT + bytes([i]) + pickle.BINGET + bytes([i]) + pickle.TUPLE2 for i in range(depth))
    return pickle.EMPTY_TUPLE + twice


MISUSED = {
    "wrong_count": (Call(Name(UTILS, "_rebuild_tensor_v2"), (storage(),)), "_rebuild_tensor_v2 with arguments that"),
    "no_storage": (tensor(of="x"), "_rebuild_tensor_v2 with arguments that do not fit"),
    "no_tuple": (Call(Name(UTILS, "_rebuild_tensor_v2"), [1]), "_rebuild_tensor_v2 with a list instead of arguments"),
    "strides_of_another_length": (tensor((4,), (1, 1)), "arguments that do not fit"),
    "negative_offset": (tensor((1,), (1,), -1), "arguments that do not fit"),
    "negative_size": (tensor((-1,), (1,)), "arguments that do not fit"),
    "negative_stride": (tensor((2,), (-1,), 3), "arguments that do not fit"),
    "size_of_bool": (tensor((True,), (1,)), "arguments that do not fit"),
    "lazily_negated": (tensor(extra=({"neg": True},)), "arguments that do not fit"),
    "ordered_dict_of_a_number": (Call(ORDERED, (3,)), "OrderedDict with arguments that do not fit"),
    "storage_called": (Call(Name("torch", "FloatStorage"), (10**12,)), "torch.FloatStorage with arguments"),
    "result_called": (Call(tensor(), ()), "calls a Tensor"),
    "attribute_of_a_tensor": (Call(tensor().function, tensor().arguments, {"x": 1}), "sets attributes of a Tensor"),
    "entries_of_a_list": (b"](K\x01K\x02u", "sets entries of a list"),
    "appends_to_a_dictionary": (b"}(K\x01e", "appends to a Dictionary"),
    "no_instruction": (b"\xff", "an instruction that state dicts do not need, 0xff"),
    "name_with_an_escape": (Name("os\\=", "system"), r"asks for os\\=\.system"),
    "unknown_instruction": (b"\x82\x01", "an instruction that state dicts do not need, EXT1"),
    "duplicated": (b"N2", "an instruction that state dicts do not need, DUP"),
    "memo_not_filled": (b"h\x07", "is damaged at byte"),
    "stack_not_filled": (pickle.TUPLE3, "is damaged at byte"),
    "mark_not_set": (b"Nu", "is damaged at byte"),
    "odd_entries": (b"}(K\x01u", "is damaged at byte"),
    "name_that_is_none": (b"NN\x93", "asks for something by a NoneType"),
    "outside_that_is_no_storage": (Outside(("module", "x", "y", "z", 1)), "outside of the pickle that is no storage"),
    "storage_of_no_dtype": (tensor(of=storage(kind="Size")), "storage of an unknown kind"),
    "storage_of_negative_length": (tensor(of=storage(length=-1)), "storage of an unknown kind, key or length"),
    "storage_of_two_lengths": ((tensor(), tensor(of=storage(length=3))), "'0' with two dtypes or lengths"),
    "part_that_is_none": (tensor(of=storage(part=("x",))), "part of storage '0' that is no start and length"),
    "part_behind_the_end": (
        tensor((1,), of=storage(part=("9", 3, 2))),
        "storage '0' of 'p' has 16 bytes instead of 20",
    ),
    "beyond_its_storage": (tensor((5,)), r"'p' reaches beyond its storage: to number 4 of 4"),
    "far_beyond_its_storage": (tensor((2,), (2**61,)), "reaches beyond its storage"),
    "offset_beyond_its_storage": (tensor((1,), (1,), 4), "reaches beyond its storage"),
    "larger_than_memory": (tensor((2**61, 2**61), (0, 0)), "not a whole file of tensors"),
    "larger_than_the_parameter": (tensor((2**40,), (0,)), r"'p' has shape \(1099511627776,\) instead of \(4,\)"),
    "too_many_axes": (tensor((1,) * 80, (1,) * 80), "not a whole file of tensors"),
    "no_tensor": (3, "'p' is not a tensor but a int"),
}


@BOTH
@pytest.mark.parametrize("case", MISUSED)
def test_what_does_not_fit_is_refused(four, path, whole, case):
    value, found = MISUSED[case]
    refused(four, path, whole(pickled({"p": value})), found)


def test_numbers_that_do_not_convert_are_refused(four, path):
    complex_numbers = tensor(of=storage(kind="ComplexFloatStorage"))
    refused(four, path, zip_file(pickled({"p": complex_numbers}), {"0": bytes(32)}), "'p' has dtype complex64")


@BOTH
def test_a_small_file_cannot_ask_for_much_memory_or_time(four, path, whole):
    far = pickle.NONE + pickle.LONG_BINPUT + b"\xff\xff\xff\xff"
    assert read(path, whole(pickled({"p": tensor(), "x": far}))).arrays["p"].shape == (4,)
    key = pickle.EMPTY_DICT + nested(200) + b"Ns"
    content = read(path, whole(pickled({"state_dict": {"p": tensor()}, "x": key})))
    assert content.ignored == ("x",)
    refused(four, path, whole(pickled({"p": tensor(), "x": nested(200)})), "'x' is not a tensor but a tuple")
    refused(four, path, whole(b"\x80\x02" + b"]" * 10**5 + b"a" * (10**5 - 1) + b"."), "a list, not a state dict")
    itself = b"}q\x00X\x01\x00\x00\x00ph\x00s"
    refused(four, path, whole(b"\x80\x02" + itself + b"."), "'p' is not a tensor but a Dictionary")
    refused(four, path, whole(b"\x80\x02X\xff\xff\xff\xffabc"), "not a whole file")


def test_an_entry_without_a_name_is_named_by_its_place(four, path):
    refused(four, path, zip_file(pickled({"p": tensor(), 3: tensor()})), "'entry 1' has a int for a name")


# Damaged files


def changed_archive(reference, change):
    """The file of PyTorch with other entries."""
    old, file = zipfile.ZipFile(reference / "zip.pth"), io.BytesIO()
    with zipfile.ZipFile(file, "w") as new:
        for name, content in change({name: old.read(name) for name in old.namelist()}).items():
            new.writestr(name, content)
    return file.getvalue()


def without(entries, *endings):
    return {name: content for name, content in entries.items() if not name.endswith(endings)}


ARCHIVES = {
    "no_pickle": (lambda entries: without(entries, "data.pkl"), r"without a NAME/data\.pkl"),
    "no_storage": (lambda entries: without(entries, "data/2"), "storage '2' is not there"),
    "short_storage": (
        lambda entries: entries | {"zip/data/0": b"123"},
        "storage '0' of 'conv.weight' has 3 bytes instead of 144",
    ),
    "short_pickle": (
        lambda entries: entries | {"zip/data.pkl": entries["zip/data.pkl"][:-9]},
        "its pickle is cut short",
    ),
    "empty_pickle": (lambda entries: entries | {"zip/data.pkl": b"."}, "the pickle is empty"),
    "two_pickles": (lambda entries: entries | {"b/data.pkl": b"N."}, r"without a NAME/data\.pkl"),
    "a_program": (lambda entries: entries | {"zip/constants.pkl": b""}, "TorchScript program"),
    "big_endian": (lambda entries: entries | {"zip/byteorder": b"big"}, "big-endian"),
}


@pytest.mark.parametrize("case", ARCHIVES)
def test_a_changed_archive_is_refused(store, reference, path, case):
    change, found = ARCHIVES[case]
    refused(store, path, changed_archive(reference, change), found)


def test_a_compressed_archive_is_refused_before_it_is_unpacked(four, path):
    bomb = zip_file(pickled({"p": tensor()}), {"0": bytes(10**7)}, zipfile.ZIP_DEFLATED)
    assert len(bomb) < 10**5
    refused(four, path, bomb, "entries are compressed")


def test_an_archive_that_claims_more_than_it_has_is_refused(four, path):
    data = zip_file(pickled({"p": tensor()}))
    directory = data.index(b"PK\x01\x02", data.index(b"PK\x01\x02") + 1)
    # Compressed and plain size of storage "0" in the directory: 2 GiB.
    huge = data[: directory + 20] + b"\0\0\0\x80" * 2 + data[directory + 28 :]
    refused(four, path, huge, "claim more bytes than the file has")


@pytest.mark.parametrize(
    ("data", "found"),
    [
        (legacy_file(pickled({"p": tensor()}), version=1000), "unknown version"),
        (legacy_file(pickled({"p": tensor()}), keys=()), "storage '0' is not there"),
        (legacy_file(pickled({"p": tensor()}), keys=("0", "1")), "a storage that no tensor uses"),
        (legacy_file(pickled({"p": tensor()}), keys=(0,)), "a storage that no tensor uses"),
        (legacy_file(pickled({"p": tensor()}), storages=[(3, FOUR[:12])]), "should have 4 numbers, but has 3"),
        (legacy_file(pickled({"p": tensor()}), storages=[(-1, FOUR)]), "should have 4 numbers, but has -1"),
        (legacy_file(pickled({"p": tensor()}))[:-1], "or is cut short"),
        (legacy_file(pickled({"p": tensor()}))[:-20], "not a whole file"),
        (legacy_file(pickled({"p": tensor(of=storage(length=2**60))}), storages=[(2**60, FOUR)]), "or is cut short"),
        (pickle.dumps({"p": 1}, 2), "neither as a zip archive nor"),
        (b"", "neither as a zip archive nor"),
        (b"\x93NUMPY", "neither as a zip archive nor"),
        (b"PK\x03\x04", "not a whole file"),
        (zip_file(pickled([tensor()])), "holds a list, not a state dict"),
        (zip_file(pickled(Call(ORDERED, ([1],)))), "something else than pairs"),
    ],
)
def test_a_damaged_file_is_refused(four, path, data, found):
    refused(four, path, data, found)


@pytest.mark.parametrize("name", ["zip.pth", "legacy.pth", "checkpoint.pth"])
@given(changes=st.lists(st.tuples(st.floats(0, 1), st.integers(0, 255)), min_size=1, max_size=3), kept=st.floats(0, 2))
@settings(max_examples=200)
def test_no_change_of_any_bytes_does_more_than_be_refused(tmp_path_factory, name, changes, kept):
    path = tmp_path_factory.mktemp("changed") / "weights.pth"
    whole = bytearray((REFERENCE / name).read_bytes())
    for place, byte in changes:
        whole[int(place * (len(whole) - 1))] = byte
    path.write_bytes(whole[: int(kept * len(whole))])
    # Anything but a ValueError fails; a changed number alone is no error.
    with contextlib.suppress(ValueError):
        read_pth(path)
