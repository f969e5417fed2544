"""``tm.resident``: data sets that stay on the devices, as shared variables whose arrays are read-only. No JAX here."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from pytensor.tensor.sharedvar import TensorSharedVariable
from pytensor.tensor.type import TensorType

from theano_mgpu.vectors import ALIGNMENT

__all__ = ["ResidentData", "resident"]


def resident(*arrays: np.ndarray, name: str | Sequence[str] | None = None) -> Any:
    """Data that stays on the devices: each holds its part of the rows, and a step looks rows up by their indices.

        images, labels = tm.resident(x, y, name=["images", "labels"])
        rows = pt.ivector("rows")
        step = tm.function([rows], loss, givens={x: images[rows], y: labels[rows]}, updates=updates)

    arrays: of one length along axis 0, and of any dtype of numbers, which stays as it is. Each is copied once, into
        memory that is read-only from then on: a change would not reach the devices. ``set_value`` takes other data.
    name: stands in errors; for several arrays a name each.

    Returns a shared variable an array (one, or a tuple), for plain PyTensor as any other. A device gets its part of the
    rows when a step first runs there, and keeps it until the variable has another value. Indices below zero count from
    the end. One outside makes the step raise IndexError, and nothing is changed.

    Raises TypeError for what is no array of numbers, ValueError for one without rows or of another length.
    """
    if not arrays:
        raise TypeError("resident(): expected one array or several, got none.")
    names = _names(name, len(arrays))
    labels = [repr(own) if own else f"array {position}" for position, own in enumerate(names)]
    for array, label in zip(arrays, labels, strict=True):
        _require_rows_of_numbers(array, label)
    for array, label in zip(arrays, labels, strict=True):
        if len(array) != len(arrays[0]):
            raise ValueError(
                f"resident(): {label} has {len(array)} rows but {labels[0]} has {len(arrays[0])}. Data looked up by "
                f"the same indices needs the same length along axis 0; make data apart by calls of its own."
            )
    variables = tuple(_variable(array, own) for array, own in zip(arrays, names, strict=True))
    return variables[0] if len(variables) == 1 else variables


class ResidentData(TensorSharedVariable):
    """A shared variable whose array is kept on the devices for as long as it is the same one, and read-only."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.placed: dict[Any, Any] = {}  # a placement to the array that is there, and where

    def set_value(self, new_value: Any, borrow: bool = False) -> None:
        """Other rows, of the same shape and dtype each; copied, also with ``borrow``. The next step places them."""
        array = self.type.filter(new_value, strict=False, allow_downcast=None)
        _require_rows_of_numbers(array, repr(self.name) if self.name else "the new value")
        self.container.value = read_only(array)
        self.placed.clear()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "placed": {}}  # devices are not saved


def read_only(array: np.ndarray) -> np.ndarray:
    """A read-only copy, row by row in memory, from an address on that XLA takes over."""
    space = np.empty(array.nbytes + ALIGNMENT, "uint8")
    start = -space.ctypes.data % ALIGNMENT
    copied = space[start : start + array.nbytes].view(array.dtype).reshape(array.shape)
    copied[...] = array
    space.flags.writeable = copied.flags.writeable = False
    return copied


def _variable(array: np.ndarray, name: str | None) -> ResidentData:
    native = array.astype(array.dtype.newbyteorder("="), copy=False)
    kind = TensorType(native.dtype, shape=(None, *native.shape[1:]))
    return ResidentData(type=kind, value=read_only(native), strict=True, name=name)


def _names(given: Any, count: int) -> Sequence[str | None]:
    if given is None:
        return [None] * count
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, (list, tuple)) or len(names) != count or not all(isinstance(n, str) for n in names):
        raise ValueError(
            f"resident(): name must be {'a word' if count == 1 else f'a list of {count} names, one an array'}, "
            f"got {given!r}."
        )
    return names


def _require_rows_of_numbers(array: Any, label: str) -> None:
    if not isinstance(array, np.ndarray):
        raise TypeError(
            f"resident(): {label} must be a numpy array, got a {type(array).__name__}. Use np.asarray(...) first."
        )
    if array.dtype.kind not in "biufc" or array.dtype.itemsize > 16:
        raise TypeError(
            f"resident(): {label} must be an array of numbers, got dtype {array.dtype}. Convert it with .astype(...)."
        )
    if array.ndim == 0:
        raise ValueError(f"resident(): {label} needs an axis of rows, got a 0-d array; for a number use shared(...).")
    if array.size == 0:
        raise ValueError(f"resident(): {label} of shape {array.shape} is empty; at least one row is needed.")
