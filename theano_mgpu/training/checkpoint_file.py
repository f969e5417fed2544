"""A checkpoint as a file: safetensors, with all that is no array, a format version and a checksum in the metadata."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import numpy as np

from theano_mgpu.errors import DamagedCheckpointError
from theano_mgpu.training.state import Checkpoint, Progress
from theano_mgpu.weights import read_safetensors, write_whole

__all__ = ["FORMAT_VERSION", "read_checkpoint", "write_checkpoint"]

#: Raised by one where an older version of the package would misread what this one writes.
FORMAT_VERSION = 1

_VERSION_KEY = "theano_mgpu_checkpoint"

# numpy's name to safetensors'.
_DTYPES = {"bool": "BOOL", "bfloat16": "BF16", "complex64": "C64"}
_DTYPES |= {f"float{bits}": f"F{bits}" for bits in (16, 32, 64)}
_DTYPES |= {f"{sign}int{bits}": f"{sign.upper() or 'I'}{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)}


def write_checkpoint(path: Path, checkpoint: Checkpoint) -> None:
    """Write a checkpoint whole or not at all: aside, flushed to the disk, renamed, and the directory flushed.

    Raises OSError where the disk does not take it, ValueError for an array of a dtype that safetensors has not.
    """
    foreign = [name for name, array in checkpoint.arrays.items() if array.dtype.name not in _DTYPES]
    if foreign:
        raise ValueError(f"save(): '{foreign[0]}' is {checkpoint.arrays[foreign[0]].dtype}, which safetensors has not.")
    training = json.dumps(
        {
            "progress": dataclasses.asdict(checkpoint.progress),
            "counts": dict(checkpoint.counts),
            "shards": checkpoint.shards,
            "must_match": dict(checkpoint.must_match),
        }
    )
    metadata = {
        _VERSION_KEY: str(FORMAT_VERSION),
        "training": training,
        "generators": checkpoint.generators,
        "checksum": _checksum(checkpoint.arrays, training, checkpoint.generators),
    }
    write_whole(path, lambda file: _write_safetensors(file, checkpoint.arrays, metadata))


def read_checkpoint(path: Path) -> Checkpoint:
    """What ``write_checkpoint`` wrote.

    Raises FileNotFoundError where there is no file, DamagedCheckpointError, naming the path, for one that is cut short,
    changed, or no checkpoint, and ValueError for one that a newer version of the package wrote.
    """
    try:
        arrays, foreign, metadata = read_safetensors(path)
    except ValueError as error:
        raise DamagedCheckpointError(f"'{path}' is damaged: it is not a whole safetensors file.") from error
    version = metadata.get(_VERSION_KEY, "")
    if not version.isdecimal():
        raise DamagedCheckpointError(f"'{path}' is damaged: it does not say that it is a checkpoint.")
    if int(version) > FORMAT_VERSION:
        raise ValueError(
            f"'{path}' is a checkpoint of format version {version}, and this version of theano_mgpu reads up to "
            f"{FORMAT_VERSION}. Install the version that wrote it, or a newer one."
        )
    training, generators = metadata.get("training", ""), metadata.get("generators", "")
    if foreign or metadata.get("checksum") != _checksum(arrays, training, generators):
        raise DamagedCheckpointError(f"'{path}' is damaged: its content is not what was saved (another checksum).")
    fields = json.loads(training)
    progress = Progress(**fields.pop("progress"))
    return Checkpoint(progress, arrays, generators, **fields, path=path)


def _checksum(arrays: Mapping[str, np.ndarray], training: str, generators: str) -> str:
    """SHA-256, in hexadecimal, of every name, dtype, shape and byte."""
    digest = hashlib.sha256(json.dumps([training, generators]).encode())
    for name in sorted(arrays):
        array = arrays[name]
        digest.update(json.dumps([name, array.dtype.name, array.shape]).encode())
        digest.update(_bytes(array))
    return digest.hexdigest()


def _write_safetensors(file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """By hand: the library copies all numbers while no other thread may run, and the steps would stand still."""
    header: dict[str, object] = {"__metadata__": dict(metadata)}
    # Widest first, so that each array is aligned for its dtype.
    in_order = sorted(arrays.items(), key=lambda item: (-item[1].dtype.itemsize, item[0]))
    start = 0
    for name, array in in_order:
        end = start + array.nbytes
        header[name] = {"dtype": _DTYPES[array.dtype.name], "shape": array.shape, "data_offsets": [start, end]}
        start = end
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(len(text).to_bytes(8, "little"))
    file.write(text)
    for _, array in in_order:
        file.write(_bytes(array))


def _bytes(array: np.ndarray) -> memoryview:
    little_endian = np.asarray(array, dtype=array.dtype.newbyteorder("<"), order="C")
    return little_endian.reshape(-1).view("uint8").data
