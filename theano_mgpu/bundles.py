"""Alike updates, bundled: variables whose new values are the same elementwise expression are computed as vectors.

ResNet-50 has 161 parameters and as many velocities, but momentum is one line. So gradients, parameters and velocities
each lie one after another in a few vectors; the rule is rewritten, traced and compiled once, for vectors, and a
variable's value is its part of one. No JAX here.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Constant, Variable
from pytensor.graph.traversal import toposort
from pytensor.tensor.elemwise import DimShuffle, Elemwise
from pytensor.tensor.type import TensorType

from theano_mgpu.cut import Cut, Program, program
from theano_mgpu.vectors import Slot, Vector, grouped, slots_of

__all__ = ["Bundle", "Bundled", "bundled"]

# Larger blocks are mapped, and so cleared, anew at each step (``host_memory``).
_LARGEST_VECTOR = 2**22 - 2**12

Shapes = Mapping[SharedVariable, tuple[int, ...]]


@dataclass(frozen=True)
class Bundle:
    """One elementwise rule, and the vectors that it is applied to.

    ``rule`` takes a vector for each of the roles ``reads``, then ``scalars``; it gives one for each of ``writes``. Each
    of ``rows`` has a vector for every role: parameters, their velocities, their gradients.
    """

    rule: Program
    reads: tuple[int, ...]
    writes: tuple[int, ...]
    scalars: tuple[Variable, ...]
    rows: tuple[tuple[Vector, ...], ...]


@dataclass(frozen=True)
class Bundled:
    """The host part of a cut as bundles and the rest.

    ``rest.outputs`` are the cut's plain outputs, then all bundles' scalars, then the new values of the variables
    ``single``. ``shapes`` are those of the bundled variables, for which alone this holds.
    """

    bundles: tuple[Bundle, ...]
    rest: Program
    single: tuple[SharedVariable, ...]
    gathered: tuple[Slot, ...]
    kinds: tuple[str, ...]  # of reductions, one for each of ``gathered``
    shared: tuple[Slot, ...]
    updated: tuple[Slot, ...]
    shapes: Shapes


def bundled(cut: Cut, shapes: Shapes) -> Bundled:
    """Find what of the host part can be bundled; ``shapes`` are those of its shared variables' values."""
    kinds = {reduction.placeholder: reduction.kind for reduction in cut.reductions}
    sums = [placeholder for placeholder, kind in kinds.items() if kind in ("average", "total")]
    outputs = cut.host.outputs[: len(cut.host.outputs) - len(cut.updated)]
    new_values = dict(zip(cut.updated, cut.host.outputs[len(outputs) :], strict=True))
    alike: dict[Any, list[_Family]] = {}
    for family in _families(new_values, {*sums, *cut.host.shared}, _merged(cut.host.outputs)):
        if len({shapes[v] for v in family.roles if v in shapes}) == 1:
            alike.setdefault(family.rule, []).append(family)
    bundles = [_bundle(families, new_values, shapes) for families in alike.values() if len(families) > 1]
    vectors = [vector for bundle in bundles for row in bundle.rows for vector in row]
    members = {variable for vector in vectors for variable in vector}
    single = tuple(v for v in cut.updated if v not in members)
    scalars = [scalar for bundle in bundles for scalar in bundle.scalars]
    rest = program(cut.host.inputs, (*outputs, *scalars, *(new_values[v] for v in single)))
    written = [row[role] for bundle in bundles for row in bundle.rows for role in bundle.writes]
    gathered = tuple(slots_of(list(kinds), vectors))
    return Bundled(
        tuple(bundles),
        rest,
        single,
        gathered=gathered,
        kinds=tuple("total" if isinstance(slot, Vector) else kinds[slot] for slot in gathered),
        shared=tuple(slots_of(cut.host.shared, vectors)),
        updated=(*written, *single),
        shapes={v: shape for v, shape in shapes.items() if v in members},
    )


@dataclass(frozen=True)
class _Family:
    """Variables that are updated from one another alone, such as a parameter, its velocity and its gradient.

    ``roles`` are the family's variables in the order in which its updates meet them, ``rule`` how they do: families of
    one rule differ in nothing but who has the roles. ``scalars`` are numbers in the updates, each with the one that all
    families share.
    """

    updated: tuple[SharedVariable, ...]
    roles: tuple[Variable, ...]
    scalars: dict[Variable, Variable]
    rule: Any


def _merged(outputs: Iterable[Variable]) -> dict[Variable, Variable]:
    """Of each number in the graph the first that is computed in the same way: Adam makes one for every parameter."""
    same: dict[Variable, Variable] = {}
    first: dict[Any, Variable] = {}

    def identity(variable: Variable) -> Any:
        if isinstance(variable, Constant) and isinstance(variable.type, TensorType):
            return (variable.type, variable.data.tobytes())
        return same.get(variable, variable)

    for node in toposort(outputs):
        if isinstance(node.op, Elemwise) and node.outputs[0].type.ndim == 0 and len(node.outputs) == 1:
            same[node.outputs[0]] = first.setdefault((node.op, *map(identity, node.inputs)), node.outputs[0])
    return same


def _families(
    new_values: Mapping[SharedVariable, Variable], known: set[Variable], same: Mapping[Variable, Variable]
) -> list[_Family]:
    """The families whose updates are elementwise throughout."""
    operands = {v: _operands(v, new_value, known) for v, new_value in new_values.items()}
    leaders: dict[Variable, Variable] = {}

    def leader(variable: Variable) -> Variable:
        while leaders.setdefault(variable, variable) is not variable:
            variable = leaders[variable]
        return variable

    for variable, relatives in operands.items():
        for relative in relatives or ():
            leaders[leader(relative)] = leader(variable)
    families: dict[Variable, list[SharedVariable]] = {}
    for variable in new_values:
        families.setdefault(leader(variable), []).append(variable)
    return [
        _family(members, new_values, same)
        for members in families.values()
        if all(operands[member] is not None for member in members)
    ]


def _operands(variable: SharedVariable, new_value: Variable, known: set[Variable]) -> list[Variable] | None:
    """The tensors of the variable's axes that an elementwise expression reads; None where it is another expression."""
    broadcastable = getattr(variable.type, "broadcastable", ())
    if all(broadcastable):  # a number: the same code with or without a vector
        return None
    found: list[Variable] = []
    stack = [new_value]
    seen = set()
    while stack:
        operand = stack.pop()
        if operand in seen or _is_scalar(operand):
            continue
        seen.add(operand)
        if operand.owner is not None and isinstance(operand.owner.op, Elemwise) and len(operand.owner.outputs) == 1:
            stack.extend(operand.owner.inputs)
        elif operand in known and getattr(operand.type, "broadcastable", ()) == broadcastable:
            found.append(operand)
        else:
            return None
    return found


def _is_scalar(variable: Variable) -> bool:
    """One number for all entries, whatever the axes it was given."""
    return isinstance(variable.type, TensorType) and (
        variable.type.ndim == 0
        or (isinstance(variable, Constant) and variable.data.size == 1)
        or (variable.owner is not None and _is_spread(variable))
    )


def _is_spread(variable: Variable) -> bool:
    return isinstance(variable.owner.op, DimShuffle) and variable.owner.inputs[0].type.ndim == 0


def _number(scalar: Variable) -> Variable:
    """The 0-d variable behind a scalar."""
    return scalar.owner.inputs[0] if scalar.owner is not None and _is_spread(scalar) else scalar


def _family(
    members: Sequence[SharedVariable],
    new_values: Mapping[SharedVariable, Variable],
    same: Mapping[Variable, Variable],
) -> _Family:
    roles: dict[Variable, int] = {}
    scalars: dict[Variable, Variable] = {}
    numbers: dict[Variable, int] = {}  # of subexpressions, met once each
    rule: list[Any] = []

    def number_of(variable: Variable) -> int:
        if variable not in numbers:
            rule.append(described(variable))
            numbers[variable] = len(rule)
        return numbers[variable]

    def described(variable: Variable) -> Any:
        if _is_scalar(variable):
            number = _number(variable)
            if isinstance(number, Constant):
                return ("constant", str(number.type.dtype), number.data.tobytes())
            scalars[number] = same.get(number, number)
            return ("scalar", scalars[number])
        if variable.owner is None:
            return ("role", roles.setdefault(variable, len(roles)), str(variable.type.dtype))
        return (variable.owner.op, *map(number_of, variable.owner.inputs))

    for member in members:
        own = roles.setdefault(member, len(roles))
        rule.append(("new", own, str(member.type.dtype), number_of(new_values[member])))
    return _Family(tuple(members), tuple(roles), scalars, tuple(rule))


def _bundle(families: list[_Family], new_values: Mapping[SharedVariable, Variable], shapes: Shapes) -> Bundle:
    first = families[0]
    writes = tuple(first.roles.index(v) for v in first.updated)
    outputs, inputs = _for_vectors([new_values[v] for v in first.updated], first)
    reads = tuple(i for i, role in enumerate(first.roles) if role in inputs)
    vectors = [inputs[first.roles[i]] for i in reads]
    scalars = dict.fromkeys(first.scalars.values())
    rule = Program((*vectors, *(inputs[scalar] for scalar in scalars)), (), tuple(outputs))
    rows = tuple(
        tuple(Vector({f.roles[i]: shapes[f.updated[0]] for f in group}) for i in range(len(first.roles)))
        for group in _groups(families, shapes)
    )
    return Bundle(rule, reads, writes, tuple(scalars), rows)


def _for_vectors(expressions: Iterable[Variable], family: _Family) -> tuple[list[Variable], dict[Variable, Variable]]:
    """The same expressions of vectors, and what stands there for each role and scalar."""
    inputs: dict[Variable, Variable] = {v: pt.vector(v.name, dtype=v.type.dtype) for v in family.roles}
    inputs |= {v: pt.scalar(v.name, dtype=v.type.dtype) for v in family.scalars.values()}
    built: dict[Variable, Variable] = {}

    def scalar(number: Variable) -> Variable:
        return pt.constant(number.data.reshape(())) if isinstance(number, Constant) else inputs[family.scalars[number]]

    def build(variable: Variable) -> Variable:
        if variable not in built:
            if _is_scalar(variable):
                built[variable] = scalar(_number(variable)).dimshuffle("x")
            elif variable.owner is None:
                built[variable] = inputs[variable]
            else:
                built[variable] = variable.owner.op(*map(build, variable.owner.inputs))
        return built[variable]

    outputs = [build(expression) for expression in expressions]
    return outputs, {v: vector for v, vector in inputs.items() if v in built or v not in family.roles}


def _groups(families: Sequence[_Family], shapes: Shapes) -> list[list[_Family]]:
    """Families side by side in one vector each."""

    def size(family: _Family) -> int:
        return max(int(np.prod(shapes[family.updated[0]])) * np.dtype(v.type.dtype).itemsize for v in family.roles)

    return grouped(families, size, _LARGEST_VECTOR)
