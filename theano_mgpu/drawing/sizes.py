"""How large the values are that cross a cut, as far as the graph and the shared variables tell before a call."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.traversal import toposort
from pytensor.tensor.elemwise import Elemwise
from pytensor.tensor.type import TensorType

from theano_mgpu.cut import Cut

__all__ = ["shapes_at_the_cut"]

Shape = list[int | None]


def shapes_at_the_cut(cut: Cut) -> list[tuple[int, ...] | None]:
    """Each reduction's shape, or None.

    ``pytensor.shared(array)`` has a type of unknown lengths, and so has its gradient; but the update rule adds the two
    elementwise, and a new value has its variable's shape.
    """
    shapes: dict[Variable, Shape] = {}
    updates = cut.host.outputs[len(cut.host.outputs) - len(cut.updated) :]
    for variable, value in (*zip(cut.updated, updates, strict=True), *((v, v) for v in cut.host.shared)):
        if isinstance(value.type, TensorType):
            shapes[value] = list(np.shape(variable.get_value(borrow=True, return_internal_type=True)))
    nodes = [node for node in toposort(cut.host.outputs) if isinstance(node.op, Elemwise)]
    for node in (*nodes, *reversed(nodes)):
        _unite(node, shapes)
    found = [_of(reduction.placeholder, shapes) for reduction in cut.reductions]
    return [None if None in shape else tuple(n for n in shape if n is not None) for shape in found]


def _of(variable: Variable, shapes: dict[Variable, Shape]) -> Shape:
    return shapes.setdefault(variable, list(variable.type.shape))


def _unite(node: Apply, shapes: dict[Variable, Shape]) -> None:
    """An elementwise node's arguments and results have one length along an axis, unless it is 1 by type."""
    for axis in range(node.outputs[0].type.ndim):
        members: Sequence[Shape] = [_of(v, shapes) for v in (*node.inputs, *node.outputs) if v.type.shape[axis] != 1]
        length = next((shape[axis] for shape in members if shape[axis] is not None), None)
        for shape in members:
            shape[axis] = length
