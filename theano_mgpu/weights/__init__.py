"""Files of weights: the store's own layout and torch's, in safetensors and in ``torch.save``'s format."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np

from theano_mgpu.weights.content import Content
from theano_mgpu.weights.report import LoadReport, matching
from theano_mgpu.weights.safetensors_file import read_safetensors
from theano_mgpu.weights.store_layout import (
    checksum,
    generator_states,
    generators_from,
    read_store_layout,
    write_store_layout,
)
from theano_mgpu.weights.torch_layout import PTH, SAFETENSORS, read_torch_layout, write_torch_layout
from theano_mgpu.weights.whole_file import flush, write_whole

__all__ = [
    "LoadReport",
    "checked_layout",
    "checksum",
    "flush",
    "generator_states",
    "generators_from",
    "matching",
    "read",
    "read_safetensors",
    "write",
    "write_whole",
]


def checked_layout(function: str, path: Path, layout: str) -> None:
    """ValueError for an unknown layout, and for a name that does not end as the layout's files do."""
    if layout not in ("store", "torch"):
        raise ValueError(f"{function}('{path}'): 'layout' should be 'store' or 'torch', not {layout!r}.")
    if layout == "torch" and not path.name.endswith(SAFETENSORS + PTH):
        known = ", ".join(SAFETENSORS + PTH)
        raise ValueError(f"{function}('{path}'): with layout='torch' the file's name should end in one of {known}.")
    if layout == "store" and path.name.endswith(PTH):
        raise ValueError(
            f"{function}('{path}'): the path ends as torch's files do; use layout='torch', or end it in .safetensors."
        )


def read(path: Path, layout: str, names: Container[str]) -> Content:
    """What a file holds; ``names`` are those that the store has."""
    return read_torch_layout(path, names) if layout == "torch" else read_store_layout(path)


def write(path: Path, layout: str, arrays: Mapping[str, np.ndarray], generators: str) -> None:
    """Write arrays, in the layout's order of axes, and in the store's own layout the generators' states."""
    if layout == "torch":
        write_torch_layout(path, arrays)
    else:
        write_store_layout(path, arrays, generators)
