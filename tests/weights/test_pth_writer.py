"""Written ``.pth`` files, read by Python's own unpickler and zip reader, and by torch where it is installed."""

from __future__ import annotations

import io
import pickle
import zipfile
from collections import OrderedDict

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from theano_mgpu.weights.pth_reader import read_pth
from theano_mgpu.weights.pth_writer import write_pth

DTYPES = {
    "float16": "HalfStorage",
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "int8": "CharStorage",
    "int16": "ShortStorage",
    "int32": "IntStorage",
    "int64": "LongStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
ARRAYS = {
    **{dtype: np.arange(6).reshape(2, 3).astype(dtype) for dtype in DTYPES},
    "scalar": np.array(2.5, "float32"),
    "empty": np.zeros((3, 0, 2), "float32"),
    "transposed": np.arange(24.0).reshape(2, 3, 4).transpose(2, 0, 1),
    "of length 1": np.arange(3.0).reshape(1, 3, 1),
    "ünïcode": np.zeros(70, "uint8"),
}


class Reader(pickle.Unpickler):
    """Python's unpickler: names stay names, storages become arrays."""

    def __init__(self, archive):
        super().__init__(io.BytesIO(archive.read("archive/data.pkl")))
        self.archive = archive

    def find_class(self, module, name):
        if name == "_rebuild_tensor_v2":
            return self.rebuilt
        return OrderedDict if name == "OrderedDict" else f"{module}.{name}"

    def persistent_load(self, pid):
        word, kind, key, device, numel = pid
        dtype = next(dtype for dtype, name in DTYPES.items() if kind == f"torch.{name}")
        assert (word, device) == ("storage", "cpu")
        storage = np.frombuffer(self.archive.read(f"archive/data/{key}"), dtype)
        assert len(storage) == numel
        return storage

    def rebuilt(self, storage, offset, size, stride, requires_grad, hooks):
        assert (offset, requires_grad, hooks) == (0, False, OrderedDict())
        return np.lib.stride_tricks.as_strided(storage, size, [n * storage.itemsize for n in stride])


def assert_same(read, arrays):
    assert list(read) == list(arrays)
    for name, array in arrays.items():
        assert (read[name].dtype, read[name].shape) == (array.dtype, array.shape)
        np.testing.assert_array_equal(read[name], array, err_msg=name)


def test_the_file_is_a_zip_archive_with_torchs_pickle(tmp_path):
    write_pth(tmp_path / "a.pth", ARRAYS)
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        assert archive.testzip() is None
        assert archive.read("archive/version") == b"3\n"
        assert archive.read("archive/byteorder") == b"little"
        assert_same(Reader(archive).load(), ARRAYS)


def test_contents_begin_at_multiples_of_64_bytes(tmp_path):
    write_pth(tmp_path / "a.pth", ARRAYS)
    data = (tmp_path / "a.pth").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.pth") as archive:
        for entry in archive.infolist():
            name, extra = np.frombuffer(data, "<u2", 2, entry.header_offset + 26)
            assert (entry.header_offset + 30 + int(name) + int(extra)) % 64 == 0, entry.filename


def test_the_same_arrays_are_the_same_file(tmp_path):
    for name in "ab":
        write_pth(tmp_path / name, ARRAYS)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


@given(
    arrays=st.dictionaries(
        st.text(st.characters(exclude_categories=["Cs"]), min_size=1),
        hnp.arrays(st.sampled_from(list(DTYPES)), hnp.array_shapes(min_dims=0, min_side=0)),
        max_size=3,
    )
)
def test_what_is_written_is_read(tmp_path_factory, arrays):
    path = tmp_path_factory.mktemp("any") / "a.pth"
    write_pth(path, arrays)
    assert_same(read_pth(path).arrays, arrays)


@pytest.mark.parametrize("dtype", ["uint16", "uint32", "uint64", "complex64"])
def test_a_dtype_that_the_format_has_not_is_named_before_anything_is_written(tmp_path, dtype):
    with pytest.raises(ValueError, match=rf"save\('.*a\.pth'\): 'p' has dtype {dtype}, which a \.pth file"):
        write_pth(tmp_path / "a.pth", {"p": np.zeros(2, dtype)})
    assert not any(tmp_path.iterdir())


def test_torch_reads_it_without_running_anything(tmp_path):
    torch = pytest.importorskip("torch")
    write_pth(tmp_path / "a.pth", ARRAYS)
    for mmap in (False, True):
        state = torch.load(tmp_path / "a.pth", weights_only=True, mmap=mmap)
        assert isinstance(state, OrderedDict)
        assert all(tensor.is_contiguous() and tensor.data_ptr() % 64 == 0 for tensor in state.values())
        assert_same({name: tensor.numpy() for name, tensor in state.items()}, ARRAYS)
