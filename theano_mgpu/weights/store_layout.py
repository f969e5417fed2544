"""Files in the store's own layout: safetensors, with the generators and a checksum in the metadata."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from theano_mgpu.weights.content import Content
from theano_mgpu.weights.safetensors_file import read_safetensors, write_safetensors

__all__ = ["checksum", "generator_states", "generators_from", "read_store_layout", "write_store_layout"]

_BIT_GENERATORS = ("PCG64", "PCG64DXSM", "Philox", "SFC64", "MT19937")


def write_store_layout(path: Path, arrays: Mapping[str, np.ndarray], generators: str) -> None:
    """Write arrays and ``generator_states``."""
    metadata = {"theano_mgpu": "1", "generators": generators, "checksum": checksum(arrays, generators)}
    write_safetensors(path, arrays, metadata)


def read_store_layout(path: Path) -> Content:
    """What ``write_store_layout`` wrote. Raises as ``read_safetensors`` does."""
    arrays, foreign, metadata = read_safetensors(path)
    problems: list[str] = []
    text = metadata.get("generators", "{}")
    generators = generators_from(text, problems)
    if "checksum" in metadata and metadata["checksum"] != checksum(arrays, text):
        problems.append("the values are not those that were saved (another checksum): the file was changed")
    if metadata.get("format") == "pt":
        problems.append("the file is in torch's layout; load it with layout='torch'")
    return Content(arrays, foreign, generators=generators, problems=tuple(problems))


def checksum(values: Mapping[str, np.ndarray], generators: str) -> str:
    """SHA-256, in hexadecimal, of all names, dtypes, shapes and bytes, and of the generators' states."""
    digest = hashlib.sha256()
    for name in sorted(values):
        value = np.asarray(values[name])
        digest.update(json.dumps([name, value.dtype.name, value.shape]).encode())
        little_endian = np.asarray(value, dtype=value.dtype.newbyteorder("<"), order="C")
        digest.update(little_endian.reshape(-1).view("uint8").data)
    digest.update(generators.encode())
    return digest.hexdigest()


def generator_states(generators: Mapping[str, np.random.Generator]) -> str:
    """The states of random generators as JSON."""
    states = {name: generator.bit_generator.state for name, generator in generators.items()}
    return json.dumps(states, sort_keys=True, default=lambda array: array.tolist())


def generators_from(text: str, problems: list[str]) -> dict[str, np.random.Generator]:
    """Generators from what ``generator_states`` wrote; what is wrong with it is added to ``problems``."""
    generators = {}
    try:
        for name, state in json.loads(text).items():
            if state["bit_generator"] not in _BIT_GENERATORS:
                raise ValueError(f"no bit generator {state['bit_generator']}")
            bit_generator = getattr(np.random, state["bit_generator"])()
            bit_generator.state = _with_arrays(state)
            generators[name] = np.random.Generator(bit_generator)
    except (ValueError, TypeError, KeyError, AttributeError, OverflowError) as error:
        problems.append(f"the generators' states cannot be read ({error})")
    return generators


def _with_arrays(state: Any) -> Any:
    if isinstance(state, dict):
        return {key: _with_arrays(value) for key, value in state.items()}
    return np.array(state, dtype="uint64") if isinstance(state, list) else state
