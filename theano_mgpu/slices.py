"""Theano's ``givens={x: data[i * size : (i + 1) * size]}``, and look-ups put first. Symbolic rewriting; no JAX here.

XLA compiles for fixed shapes, and how long a slice is, only the call says. So where a slice is given, rows are looked
up: their numbers are a further input, which each call computes on the host and splits as any batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.mode import Mode
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable, equal_computations
from pytensor.graph.replace import clone_replace
from pytensor.graph.traversal import ancestors, toposort
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.shape import Reshape, Shape, Shape_i, SpecifyShape
from pytensor.tensor.subtensor import Subtensor, indices_from_subtensor
from pytensor.tensor.type import TensorType

from theano_mgpu.arguments import Argument
from theano_mgpu.mirror import read
from theano_mgpu.resident_data import ResidentData

__all__ = ["Slices", "look_ups_first", "with_slices_looked_up"]


@dataclass(frozen=True)
class _Slice:
    """``data[start:stop]`` for some data: ``rows`` is the input that stands for their numbers.

    ``taken_of`` are the variables that were given it, each with its data.
    """

    start: Variable | None
    stop: Variable | None
    rows: Variable
    taken_of: list[tuple[str, Variable]] = field(default_factory=list)

    def is_same(self, start: Variable | None, stop: Variable | None) -> bool:
        return _are_equal(self.start, start) and _are_equal(self.stop, stop)


class Slices:
    """The slices among a step's givens: ``rows`` are inputs of the graph that a call computes from its others."""

    def __init__(self, slices: Sequence[_Slice], inputs: Sequence[Variable]) -> None:
        self._slices = slices
        self.rows = [given.rows for given in slices]
        self.bounds = [v for given in slices for v in (given.start, given.stop) if v is not None]
        self._numbers = []  # for each slice its bounds, then the lengths of its data
        for given in slices:
            self._numbers += [pt.as_tensor_variable(v) for v in (given.start, given.stop) if v is not None]
            self._numbers += [_leaf(data).shape[0] for _, data in given.taken_of]
        used = set(ancestors(self._numbers))
        self._inputs = [v for v in inputs if v in used]
        self._shared = [v for v in used if isinstance(v, SharedVariable)]
        self._function: Callable[..., list[Any]] | None = None

    def values(
        self, step: str, arguments: Sequence[Argument], batch: Mapping[Variable, np.ndarray], split: Sequence[Variable]
    ) -> dict[Variable, np.ndarray]:
        """The rows' numbers, int64; ValueError for an empty slice, and for one of another length than the batch."""
        if not self._slices:
            return {}
        numbers = iter(self._computed(batch))
        known = [(a.label(i), len(batch[a.variable])) for i, a in enumerate(arguments) if a.variable in split]
        values = {}
        for given in self._slices:
            start = None if given.start is None else int(next(numbers))
            stop = None if given.stop is None else int(next(numbers))
            rows = self._rows(step, given, slice(start, stop), [int(next(numbers)) for _ in given.taken_of])
            values[given.rows] = rows
            known.append((f"the slice for {_label(given)}", len(rows)))
            if len(rows) != known[0][1]:
                raise ValueError(
                    f"{step}(): {known[-1][0]} has {len(rows)} rows but {known[0][0]} has {known[0][1]}. Slices in "
                    f"givens are parts of one batch, so they and every split input need the same length."
                )
        return values

    def _computed(self, batch: Mapping[Variable, np.ndarray]) -> list[Any]:
        if self._function is None:
            # Shared variables as inputs: a function of them would apply their default updates. Python's linker compiles
            # nothing, and a call takes 0.2 ms.
            inputs = {v: v.type() for v in (*self._inputs, *self._shared)}
            numbers = clone_replace(self._numbers, replace=inputs)
            mode = Mode("py", "fast_compile")
            self._function = pytensor.function(list(inputs.values()), numbers, mode=mode, on_unused_input="ignore")
        return self._function(*(batch[v] for v in self._inputs), *map(read, self._shared))

    def _rows(self, step: str, given: _Slice, of: slice, lengths: Sequence[int]) -> np.ndarray:
        ranges = [range(*of.indices(length)) for length in lengths]
        shown = f"[{'' if of.start is None else of.start}:{'' if of.stop is None else of.stop}]"
        for (name, data), own, length in zip(given.taken_of, ranges, lengths, strict=True):
            first_name, first_data = given.taken_of[0]
            if own != ranges[0]:
                raise ValueError(
                    f"{step}(): the slice {shown} for {name} ends in {_name(data)} after {len(own)} of {length} rows, "
                    f"but for {first_name} in {_name(first_data)} after {len(ranges[0])} of {lengths[0]}. One batch "
                    f"needs data of the same length."
                )
            if not own:
                raise ValueError(
                    f"{step}(): the slice {shown} for {name} is empty: {_name(data)} has {length} rows. A batch needs "
                    f"at least one."
                )
        return np.arange(ranges[0].start, ranges[0].stop)


def with_slices_looked_up(
    givens: Iterable[Any], graph: Sequence[Variable], inputs: Sequence[Variable]
) -> tuple[list[Any], Slices]:
    """The givens with every slice of shared data, by bounds that calls or shared numbers say, as a look-up of rows.

    ``graph`` is what the givens are for: those that it does not need stay as they are. Slices by equal bounds share
    their rows. What keeps the rows apart may be done to a slice: ``.astype(...)``, ``/ 255``, ``.reshape((-1, 784))``.

    Raises ValueError for a slice with a step.
    """
    needed = set(ancestors(graph))
    found: list[_Slice] = []
    changed = [
        (pair[0], _looked_up(pair[1], _label_of(pair[0]), found, inputs)) if _is_for(pair, needed) else pair
        for pair in givens
    ]
    return changed, Slices(found, inputs)


def _is_for(pair: Any, needed: set[Variable]) -> bool:
    return isinstance(pair, (list, tuple)) and len(pair) == 2 and pair[0] in needed and isinstance(pair[1], Variable)


def _looked_up(value: Variable, label: str, found: list[_Slice], inputs: Sequence[Variable]) -> Variable:
    """``value`` with the slices that its rows come from as look-ups."""
    node = value.owner
    if node is None or len(node.outputs) != 1:
        return value
    if isinstance(node.op, Subtensor) and isinstance(node.op.idx_list[0], slice):
        first, *rest = indices_from_subtensor(node.inputs[1:], node.op.idx_list)
        if first == slice(None):
            return _applied(node, [_looked_up(node.inputs[0], label, found, inputs), *node.inputs[1:]])
        if not _is_batch(node.inputs[0], first, inputs):
            return value
        if first.step is not None and not (isinstance(first.step, Constant) and first.step.data == 1):
            raise ValueError(
                f"givens: the slice for {label} has a step, which rows are not looked up by. Make an integer vector an "
                f"input, say rows = pt.ivector('rows'), and give {_name(node.inputs[0])}[rows] instead."
            )
        rows = _rows_input(node.inputs[0], first, label, found)
        taken = rows_of(node.inputs[0], rows)
        return taken[(slice(None), *rest)] if rest else taken
    if isinstance(node.op, Elemwise):
        return _applied(node, [_looked_up(v, label, found, inputs) for v in node.inputs])
    if isinstance(node.op, (Reshape, SpecifyShape)) or _keeps_rows(node.op):
        return _applied(node, [_looked_up(node.inputs[0], label, found, inputs), *node.inputs[1:]])
    return value


def _applied(node: Any, inputs: list[Variable]) -> Variable:
    return node.outputs[0] if inputs == node.inputs else node.op(*inputs)


def _is_batch(data: Variable, of: slice, inputs: Sequence[Variable]) -> bool:
    """Of shared data alone, and between bounds that are not known when the step is compiled, as shapes are."""
    of_data = [v for v in ancestors([data]) if v.owner is None and not isinstance(v, Constant)]
    if not of_data or not all(isinstance(v, SharedVariable) for v in of_data):
        return False
    bounds = [v for v in (of.start, of.stop) if isinstance(v, Variable)]
    roots = [v for v in ancestors(bounds, blockers=_shapes(bounds)) if v.owner is None and not isinstance(v, Constant)]
    return bool(roots) and all(v in inputs or _is_shared_tensor(v) for v in roots)


def _shapes(variables: Sequence[Variable]) -> list[Variable]:
    return [node.outputs[0] for node in toposort(variables) if isinstance(node.op, (Shape, Shape_i))]


def _is_shared_tensor(variable: Variable) -> bool:
    return isinstance(variable, SharedVariable) and isinstance(variable.type, TensorType)


def _rows_input(data: Variable, of: slice, label: str, found: list[_Slice]) -> Variable:
    same = next((given for given in found if given.is_same(of.start, of.stop)), None)
    if same is None:
        same = _Slice(of.start, of.stop, pt.lvector(f"rows for {label}"))
        found.append(same)
    same.taken_of.append((label, data))
    return same.rows


def rows_of(data: Variable, rows: Variable) -> Variable:
    """``data[rows]``, the rows being looked up before what is done to each of them alone."""
    node = data.owner
    if node is not None and len(node.outputs) == 1:
        if isinstance(node.op, Elemwise):
            return node.op(*(v if v.type.broadcastable[0] else rows_of(v, rows) for v in node.inputs))
        if _keeps_rows(node.op):
            return node.op(rows_of(node.inputs[0], rows))
    return data[rows]


def _leaf(data: Variable) -> Variable:
    """A variable as long as ``data`` is, further down: its length is known sooner."""
    while data.owner is not None and len(data.owner.outputs) == 1:
        if isinstance(data.owner.op, Elemwise):
            data = next(v for v in data.owner.inputs if not v.type.broadcastable[0])
        elif _keeps_rows(data.owner.op):
            data = data.owner.inputs[0]
        else:
            break
    return data


def _keeps_rows(op: Any) -> bool:
    return isinstance(op, DimShuffle) and op.new_order[:1] == (0,)


def look_ups_first(graph: Sequence[Variable]) -> list[Variable]:
    """The graph with ``(data / 255)[rows]`` of resident data as ``data[rows] / 255``: it stays where it is.

    Raises ValueError where the same rows are looked up in resident data of different lengths.
    """
    replace: dict[Variable, Variable] = {}
    looked_up_by: dict[Variable, ResidentData] = {}
    for node in toposort(graph):
        if type(node.op).__name__ not in ("AdvancedSubtensor", "AdvancedSubtensor1") or len(node.inputs) != 2:
            continue
        data, rows = node.inputs
        leaf = _leaf(data)
        if not isinstance(leaf, ResidentData) or getattr(node.op, "idx_list", (0,)) != (0,):
            continue
        first = looked_up_by.setdefault(rows, leaf)
        if len(read(leaf)) != len(read(first)):
            raise ValueError(
                f"function(): {rows.name or rows} looks rows up in {_name(first)}, which has {len(read(first))} rows, "
                f"and in {_name(leaf)}, which has {len(read(leaf))}. Data looked up by the same indices needs the same "
                f"length."
            )
        if leaf is not data and rows.type.ndim == 1:
            replace[node.outputs[0]] = rows_of(data, rows)
    return list(clone_replace(list(graph), replace=replace)) if replace else list(graph)


def _are_equal(one: Variable | None, other: Variable | None) -> bool:
    if one is None or other is None:
        return one is other
    return equal_computations([one], [other])


def _label(given: _Slice) -> str:
    return given.taken_of[0][0]


def _label_of(variable: Variable) -> str:
    return repr(str(variable.name)) if variable.name else str(variable)


def _name(data: Variable) -> str:
    return str(data.name or _leaf(data))
