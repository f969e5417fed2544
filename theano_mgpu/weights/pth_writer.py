"""Writes state dicts as ``torch.save`` does since torch 1.6, without torch.

A zip archive, not compressed, with the pickle ``archive/data.pkl`` and each tensor's bytes as ``archive/data/KEY``, at
multiples of 64 bytes so that ``torch.load(..., mmap=True)`` can use them where they are. The pickle is written
instruction by instruction: Python's pickler would have to import the classes it names.

https://docs.pytorch.org/docs/stable/notes/serialization.html; ``_save`` in ``torch/serialization.py``; the instructions
are those of ``Lib/pickletools.py``, protocol 2.
"""

from __future__ import annotations

import itertools
import pickle
import struct
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import numpy as np

from theano_mgpu.weights.whole_file import write_whole

__all__ = ["write_pth"]

_STORAGES = {
    "float32": "FloatStorage",
    "float64": "DoubleStorage",
    "float16": "HalfStorage",
    "int64": "LongStorage",
    "int32": "IntStorage",
    "int16": "ShortStorage",
    "int8": "CharStorage",
    "uint8": "ByteStorage",
    "bool": "BoolStorage",
}
_ALIGNMENT = 64
_ORDERED_DICT = pickle.GLOBAL + b"collections\nOrderedDict\n" + pickle.EMPTY_TUPLE + pickle.REDUCE
_REBUILD = pickle.GLOBAL + b"torch._utils\n_rebuild_tensor_v2\n"


def write_pth(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays as a state dict that ``torch.load(path, weights_only=True)`` reads, whole or not at all.

    Raises ValueError, naming the entry, for a dtype that torch's files do not have (the unsigned ones but uint8).
    """
    for name, array in arrays.items():
        if array.dtype.name not in _STORAGES:
            raise ValueError(
                f"save('{path}'): '{name}' has dtype {array.dtype}, which a .pth file does not hold; save as "
                ".safetensors, or leave it out of the store."
            )
    content = {
        name: np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C") for name, array in arrays.items()
    }
    write_whole(path, lambda file: _write_archive(file, content))


def _write_archive(file: BinaryIO, arrays: Mapping[str, np.ndarray]) -> None:
    with zipfile.ZipFile(file, "w", zipfile.ZIP_STORED) as archive:
        _write_entry(file, archive, "data.pkl", _pickled(arrays))
        _write_entry(file, archive, ".format_version", b"1")
        _write_entry(file, archive, ".storage_alignment", str(_ALIGNMENT).encode())
        _write_entry(file, archive, "byteorder", b"little")
        for key, array in enumerate(arrays.values()):
            _write_entry(file, archive, f"data/{key}", array.reshape(-1).view("uint8").data)
        _write_entry(file, archive, "version", b"3\n")


def _write_entry(file: BinaryIO, archive: zipfile.ZipFile, name: str, content: bytes | memoryview) -> None:
    """One entry whose content begins at a multiple of 64 bytes."""
    # Without a date: the same weights are the same file.
    entry = zipfile.ZipInfo(f"archive/{name}")
    header = 30 + len(entry.filename) + 4
    padding = -(file.tell() + header) % _ALIGNMENT
    # An extra field called "FB", as torch's own.
    entry.extra = b"FB" + struct.pack("<H", padding) + bytes(padding)
    archive.writestr(entry, content)


def _pickled(arrays: Mapping[str, np.ndarray]) -> bytes:
    """An OrderedDict of tensors, each of a storage of its own."""
    entries = (_text(name) + _tensor(str(key), array) for key, (name, array) in enumerate(arrays.items()))
    return b"".join([pickle.PROTO, b"\x02", _ORDERED_DICT, pickle.MARK, *entries, pickle.SETITEMS, pickle.STOP])


def _tensor(key: str, array: np.ndarray) -> bytes:
    """_rebuild_tensor_v2(storage, offset, shape, strides, requires_grad, hooks)"""
    kind = pickle.GLOBAL + f"torch\n{_STORAGES[array.dtype.name]}\n".encode()
    storage = _tuple([_text("storage"), kind, _text(key), _text("cpu"), _integer(array.size)]) + pickle.BINPERSID
    shape = _tuple(map(_integer, array.shape))
    strides = _tuple(map(_integer, _strides(array.shape)))
    arguments = [storage, _integer(0), shape, strides, pickle.NEWFALSE, _ORDERED_DICT]
    return _REBUILD + _tuple(arguments) + pickle.REDUCE


def _strides(shape: Sequence[int]) -> list[int]:
    """Of a C-contiguous tensor, in numbers."""
    lengths = itertools.accumulate((max(n, 1) for n in reversed(shape[1:])), lambda a, b: a * b, initial=1)
    return list(lengths)[::-1] if shape else []


def _tuple(items) -> bytes:
    return pickle.MARK + b"".join(items) + pickle.TUPLE


def _text(text: str) -> bytes:
    encoded = text.encode()
    return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded


def _integer(value: int) -> bytes:
    return (
        pickle.BININT + struct.pack("<i", value) if value < 2**31 else pickle.LONG1 + b"\x08" + struct.pack("<q", value)
    )
