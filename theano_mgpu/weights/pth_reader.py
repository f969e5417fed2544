"""Reads what ``torch.save`` writes, without torch, and without running anything that the file asks for.

Two formats. Since torch 1.6 a zip archive, not compressed: ``NAME/data.pkl`` is the pickle and ``NAME/data/KEY`` the
bytes of each storage. Before, five pickles in a row (a magic number, the format's version, the machine, the object, the
storages' keys), then for each key the number of its elements as int64 and their bytes.

https://docs.pytorch.org/docs/stable/notes/serialization.html; ``_load`` and ``_legacy_load`` in
``torch/serialization.py``.
"""

from __future__ import annotations

import io
import struct
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path

import ml_dtypes
import numpy as np

from theano_mgpu.weights.content import Content, unreadable
from theano_mgpu.weights.pickle_machine import carry_out
from theano_mgpu.weights.torch_objects import Dictionary, Parameter, Tensor, kind

__all__ = ["read_pth"]

_MAGIC = 0x1950A86A20F9469CFC6C
#: Under what name training scripts keep the weights beside the optimizer: timm's and torchvision's.
_NESTED = ("state_dict", "model")

# A storage's bytes, by its key.
_Bytes = Callable[[str], np.ndarray]


def read_pth(path: Path) -> Content:
    """The tensors of a state dict, or of a checkpoint that holds one under "state_dict" or "model".

    Tensors come as read-only views of their storages, in torch's order of axes; tied ones share memory. The other
    entries of a checkpoint are ``ignored``, those of a state dict that are no tensors are ``foreign``.

    Raises FileNotFoundError where there is no file, and ValueError naming the path for a file that is cut short,
    compressed, or no ``torch.save``'s, that refers beyond its own end, or that asks for anything but tensors.
    """
    data = path.read_bytes()
    try:
        if data.startswith(b"PK\x03\x04"):
            return _content(*_zip_archive(data))
        return _content(*_pickles_in_a_row(data))
    # RuntimeError is zipfile's word for an encrypted entry, NotImplementedError its word for an unknown one.
    except (ValueError, OverflowError, EOFError, struct.error, zipfile.BadZipFile, zlib.error, RuntimeError) as error:
        raise unreadable(path, f"not a whole file of tensors that torch.save wrote: {error}") from error


def _zip_archive(data: bytes) -> tuple[object, _Bytes]:
    archive = zipfile.ZipFile(io.BytesIO(data))
    entries = archive.infolist()
    if any(entry.compress_type != zipfile.ZIP_STORED for entry in entries):
        raise ValueError("its entries are compressed, which torch.save does not do")
    if sum(entry.file_size for entry in entries) > len(data):
        raise ValueError("its entries claim more bytes than the file has")
    names = {entry.filename for entry in entries}
    pickles = [name for name in names if name.endswith("/data.pkl") and name.count("/") == 1]
    if len(pickles) != 1:
        raise ValueError("it is a zip archive without a NAME/data.pkl")
    folder = pickles[0].removesuffix("data.pkl")
    if f"{folder}constants.pkl" in names:
        raise ValueError("it is a TorchScript program, not weights; save model.state_dict() instead")
    if f"{folder}byteorder" in names and archive.read(f"{folder}byteorder") != b"little":
        raise ValueError("its numbers are big-endian")
    program = carry_out(io.BytesIO(archive.read(pickles[0])))

    def stored(key: str) -> np.ndarray:
        if f"{folder}data/{key}" not in names:
            raise ValueError(f"storage '{key}' is not there")
        return np.frombuffer(archive.read(f"{folder}data/{key}"), "uint8")

    return program.result, stored


def _pickles_in_a_row(data: bytes) -> tuple[object, _Bytes]:
    file = io.BytesIO(data)
    if not data.startswith(b"\x80") or carry_out(file).result != _MAGIC:
        raise ValueError("it begins neither as a zip archive nor as the format before torch 1.6")
    if carry_out(file).result != 1001:
        raise ValueError("its format is of an unknown version")
    carry_out(file)
    program = carry_out(file)
    keys = carry_out(file).result
    if not isinstance(keys, list):
        raise ValueError("it does not list its storages")
    places = {}
    for key in keys:
        storage = program.storages.get(key) if isinstance(key, str) else None
        if storage is None:
            raise ValueError("it lists a storage that no tensor uses")
        (length,) = struct.unpack("<q", file.read(8))
        size = length * _dtype(storage.dtype).itemsize
        if length != storage.length or not 0 <= size <= len(data) - file.tell():
            raise ValueError(f"storage '{key}' should have {storage.length} numbers, but has {length} or is cut short")
        places[key] = (file.tell(), size)
        file.seek(size, io.SEEK_CUR)

    def stored(key: str) -> np.ndarray:
        if key not in places:
            raise ValueError(f"storage '{key}' is not there")
        start, size = places[key]
        return np.frombuffer(data, "uint8", size, start)

    return program.result, stored


def _content(result: object, stored: _Bytes) -> Content:
    weights, ignored = _state_dict(result)
    arrays: dict[str, np.ndarray] = {}
    foreign: dict[str, str] = {}
    storages: dict[str, np.ndarray] = {}
    for name, value in weights:
        if isinstance(value, Parameter):
            value = value.tensor
        if not isinstance(name, str):
            foreign[f"entry {len(arrays) + len(foreign)}"] = f"has a {type(name).__name__} for a name"
        elif isinstance(value, Tensor):
            arrays[name] = _array(name, value, storages, stored)
        else:
            foreign[name] = f"is not a tensor but {kind(value)}"
    return Content(arrays, foreign, ignored)


def _state_dict(result: object) -> tuple[list[tuple[object, object]], tuple[str, ...]]:
    """The entries of the state dict in what was saved, and the names of what was saved beside it."""
    if not isinstance(result, Dictionary):
        raise ValueError(f"it holds {kind(result)}, not a state dict")
    entries = result.items()
    for key in _NESTED:
        for name, value in entries:
            if name == key and isinstance(value, Dictionary):
                return value.items(), tuple(other for other, _ in entries if isinstance(other, str) and other != key)
    return entries, ()


def _array(name: str, tensor: Tensor, storages: dict[str, np.ndarray], stored: _Bytes) -> np.ndarray:
    """The tensor as a view of its storage, which is read where no tensor before needed it."""
    storage = tensor.storage
    itemsize = _dtype(storage.dtype).itemsize
    end = (storage.start + storage.length) * itemsize
    if storage.key not in storages:
        storages[storage.key] = stored(storage.key)
    content = storages[storage.key]
    if content.size < end:
        raise ValueError(f"storage '{storage.key}' of '{name}' has {content.size} bytes instead of {end}")
    content = content[storage.start * itemsize : end]
    dtype = _dtype(tensor.dtype)
    numbers = content[: content.size // dtype.itemsize * dtype.itemsize].view(dtype)
    last = tensor.offset + sum((n - 1) * stride for n, stride in zip(tensor.shape, tensor.strides, strict=True))
    if 0 in tensor.shape:
        return np.empty(tensor.shape, dtype)
    if last >= numbers.size:
        raise ValueError(f"'{name}' reaches beyond its storage: to number {last} of {numbers.size}")
    # The stride along an axis of length 1 says nothing, and may be anything.
    strides = [stride * dtype.itemsize if n > 1 else 0 for n, stride in zip(tensor.shape, tensor.strides, strict=True)]
    return np.lib.stride_tricks.as_strided(numbers[tensor.offset :], tensor.shape, strides, writeable=False)


def _dtype(name: str) -> np.dtype:
    return np.dtype(ml_dtypes.bfloat16 if name == "bfloat16" else name)
