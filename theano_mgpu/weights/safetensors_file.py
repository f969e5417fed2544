"""safetensors files: a header in JSON, then the numbers. https://huggingface.co/docs/safetensors"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

# Gives NumPy the name "bfloat16", by which safetensors asks for it.
import ml_dtypes  # noqa: F401
import numpy as np
import safetensors
import safetensors.numpy

from theano_mgpu.weights.content import unreadable
from theano_mgpu.weights.whole_file import write_whole

__all__ = ["read_safetensors", "write_safetensors"]


def read_safetensors(path: Path) -> tuple[dict[str, np.ndarray], dict[str, str], dict[str, str]]:
    """All arrays, the entries of a dtype that NumPy has not (name to words that say so), and the file's metadata.

    Raises FileNotFoundError where there is no file, ValueError naming the path for one that is cut short or something
    else.
    """
    arrays, foreign = {}, {}
    try:
        with safetensors.safe_open(path, framework="np") as file:
            for name in file.keys():  # noqa: SIM118
                try:
                    arrays[name] = file.get_tensor(name)
                except (TypeError, AttributeError, KeyError):
                    foreign[name] = f"holds {file.get_slice(name).get_dtype()}, which NumPy cannot hold"
            return arrays, foreign, file.metadata() or {}
    except (safetensors.SafetensorError, TypeError, ValueError, KeyError, AttributeError) as error:
        raise unreadable(
            path, f"not a whole safetensors file ({error}); it was cut short, or something else wrote it"
        ) from error


def write_safetensors(path: Path, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]) -> None:
    """Write C-contiguous arrays, whole or not at all."""
    content = {name: np.asarray(array, order="C") for name, array in arrays.items()}
    write_whole(path, lambda file: file.write(safetensors.numpy.save(content, metadata=dict(metadata))))
