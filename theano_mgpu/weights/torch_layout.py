"""Files as torchvision and timm name them, ``.safetensors`` or ``.pth``: parameters in torch's order of axes."""

from __future__ import annotations

from collections.abc import Container, Mapping
from pathlib import Path

import numpy as np

from theano_mgpu.weights.content import Content
from theano_mgpu.weights.pth_reader import read_pth
from theano_mgpu.weights.pth_writer import write_pth
from theano_mgpu.weights.safetensors_file import read_safetensors, write_safetensors

__all__ = ["PTH", "SAFETENSORS", "read_torch_layout", "write_torch_layout"]

#: The ends of files' names.
SAFETENSORS = (".safetensors",)
PTH = (".pth", ".pt", ".pth.tar")

#: What DistributedDataParallel and torch.compile put in front of every name.
_PREFIXES = ("module.", "_orig_mod.")
_COUNTER = "num_batches_tracked"


def read_torch_layout(path: Path, names: Container[str]) -> Content:
    """The entries of a file; ``names`` are those of the store.

    A prefix that all entries have is taken off. Counts of batches, which torch's batch norm keeps and ours does not,
    are ``ignored`` unless the store has them.
    """
    content = read_pth(path) if path.name.endswith(PTH) else _read_safetensors(path)
    arrays, foreign = dict(content.arrays), dict(content.foreign)
    for prefix in _PREFIXES * 2:
        entries = [*arrays, *foreign]
        if entries and all(name.startswith(prefix) and name not in names for name in entries):
            arrays = {name.removeprefix(prefix): array for name, array in arrays.items()}
            foreign = {name.removeprefix(prefix): what for name, what in foreign.items()}
    counters = [name for name in arrays if name.rpartition(".")[2] == _COUNTER and name not in names]
    arrays = {name: array for name, array in arrays.items() if name not in counters}
    return Content(arrays, foreign, (*counters, *content.ignored), problems=content.problems)


def write_torch_layout(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Write arrays that have torch's order of axes, and a count of batches, 0, next to each ``running_mean``."""
    complete = {}
    for name, array in arrays.items():
        complete[name] = np.asarray(array, order="C")
        layer, _, part = name.rpartition(".")
        if part == "running_mean" and f"{layer}.{_COUNTER}" not in arrays:
            complete[f"{layer}.{_COUNTER}"] = np.zeros((), "int64")
    if path.name.endswith(PTH):
        write_pth(path, complete)
    else:
        write_safetensors(path, complete, {"format": "pt"})


def _read_safetensors(path: Path) -> Content:
    arrays, foreign, metadata = read_safetensors(path)
    own = "the file is in the store's own layout; load it without layout='torch'"
    return Content(arrays, foreign, problems=(own,) if "theano_mgpu" in metadata else ())
