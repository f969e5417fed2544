"""Several variables' values in one array, one after another: numpy's arrays or JAX's alike."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

import numpy as np
from pytensor.graph.basic import Variable

__all__ = ["ALIGNMENT", "Slot", "Values", "Vector", "grouped", "joined", "parts_of", "slots_of", "variables_of"]

ALIGNMENT = 64  # bytes: XLA takes over memory that begins at a multiple of it, and copies any other


class Vector:
    """Where variables of one dtype have their parts in an array of one axis: each from a multiple of 64 bytes on."""

    def __init__(self, shapes: Mapping[Variable, tuple[int, ...]]) -> None:
        self.shapes = dict(shapes)
        self.dtype = str(next(iter(shapes)).type.dtype)
        self._slices: dict[Variable, slice] = {}
        step = ALIGNMENT // np.dtype(self.dtype).itemsize
        start = 0
        for variable, shape in shapes.items():
            size = int(np.prod(shape))
            self._slices[variable] = slice(start, start + size)
            start += -(-size // step) * step
        self.size = start

    def __iter__(self) -> Iterator[Variable]:
        return iter(self.shapes)

    def join(self, values: Mapping[Variable, Any], xp: Any = np) -> Any:
        """The array of the variables' values, by numpy or ``jax.numpy``; ValueError for one of another shape."""
        pieces: list[Any] = []
        end = 0
        for variable, part in self._slices.items():
            if part.start > end:
                pieces.append(xp.zeros(part.start - end, self.dtype))
            value = values[variable]
            if value.shape != self.shapes[variable]:
                raise ValueError(
                    f"updates: {variable.name or 'an average'} has shape {value.shape}, but the variable that it "
                    f"updates has {self.shapes[variable]}. Reduce or reshape the expression to the variable's shape."
                )
            pieces.append(value.reshape(-1))
            end = part.stop
        if self.size > end:
            pieces.append(xp.zeros(self.size - end, self.dtype))
        return xp.concatenate(pieces)

    def part(self, array: Any, variable: Variable) -> Any:
        """One variable's value: of a numpy array a view."""
        return array[self._slices[variable]].reshape(self.shapes[variable])

    def overlap(self, variable: Variable, start: int, piece: Any) -> Any:
        """What of ``piece``, which begins at ``start`` of the array, is one variable's."""
        where = self._slices[variable]
        return piece[max(where.start - start, 0) : max(where.stop - start, 0)]


T = TypeVar("T")

# What travels as one array.
Slot: TypeAlias = Vector | Variable


def variables_of(slot: Slot) -> list[Variable]:
    return list(slot) if isinstance(slot, Vector) else [slot]


def parts_of(slot: Slot, array: Any) -> list[Any]:
    """The values of ``variables_of(slot)``."""
    return [slot.part(array, variable) for variable in slot] if isinstance(slot, Vector) else [array]


def slots_of(variables: Sequence[Variable], vectors: Sequence[Vector]) -> list[Slot]:
    """The vectors that hold some of the variables, then the variables that are in none."""
    holders = {variable: vector for vector in vectors for variable in vector}
    held = dict.fromkeys(holders[v] for v in variables if v in holders)
    return [*held, *(v for v in variables if v not in holders)]


def joined(slots: Sequence[Slot], values: Mapping[Variable, Any], xp: Any = np) -> list[Any]:
    """An array a slot."""
    return [slot.join(values, xp) if isinstance(slot, Vector) else values[slot] for slot in slots]


def grouped(items: Iterable[T], size: Callable[[T], int], most: int) -> list[list[T]]:
    """Neighbours in groups of at most ``most`` together; one that is larger by itself is a group of its own."""
    groups: list[list[T]] = []
    held = most
    for item in items:
        if held + size(item) > most:
            groups.append([])
            held = 0
        groups[-1].append(item)
        held += size(item)
    return groups


class Values(Mapping[Variable, Any]):
    """Variables' values, cut from the arrays of their slots when they are asked for."""

    def __init__(self, slots: Sequence[Slot], arrays: Sequence[Any]) -> None:
        self._of: dict[Variable, tuple[Slot, Any]] = {}
        for slot, array in zip(slots, arrays, strict=True):
            for variable in variables_of(slot):
                self._of[variable] = (slot, array)

    def __getitem__(self, variable: Variable) -> Any:
        slot, array = self._of[variable]
        return slot.part(array, variable) if isinstance(slot, Vector) else array

    def __iter__(self) -> Iterator[Variable]:
        return iter(self._of)

    def __len__(self) -> int:
        return len(self._of)
