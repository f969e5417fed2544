"""Regions made real: the graph with what their backward passes need computed again. No JAX here.

A node that depends on a region's ``Return`` belongs to its backward pass, all others to the forward pass. Where the
first consume a variable of the second that comes from inside the region, they are given a copy, computed from the
region's arguments as they are ``After`` the cotangents have come: another variable than the original, so that no
compiler can take one for the other, and one that cannot be computed any earlier.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import Any

from pytensor.graph.basic import Apply, Variable
from pytensor.graph.traversal import toposort
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.shape import Shape, Shape_i

from theano_mgpu.averages import ShardReduction, shard_weight
from theano_mgpu.compatibility import OpWithShapes
from theano_mgpu.regions import Enter, Mark, Region, Return

__all__ = ["After", "recomputed"]


class After(OpWithShapes):
    """x, the shard's weight, others to x itself, once the others are there."""

    __props__ = ()
    view_map = {0: [0]}  # noqa: RUF012 (as PyTensor reads it)

    def make_node(self, x: Variable, weight: Variable, *others: Variable) -> Apply:
        return Apply(self, [x, weight, *others], [x.type(name=x.name)])

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: list[list[Any]]) -> None:
        output_storage[0][0] = inputs[0]

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        return [input_shapes[0]]

    def do_constant_folding(self, fgraph: Any, node: Apply) -> bool:
        return False


def recomputed(outputs: Sequence[Variable]) -> list[Variable]:
    """The same values without marks of regions, computed again where a backward pass needs them.

    A consumer waits for no more than the cotangents that it depends on anyway, so the result has no cycles whatever the
    graph: several losses, derivatives of derivatives, regions in regions.
    """
    nodes = list(toposort(outputs))
    if not any(isinstance(node.op, Mark) for node in nodes):
        return list(outputs)
    return _Recomputation(nodes).rebuilt(outputs)


# Where a copy stands: a node, and the Returns (bits) for whose backward pass it is computed; none for the original.
Place = tuple[Apply, int]


class _Recomputation:
    """Sets of regions and of Return nodes are the bits of integers: every node of a deep network has one of each."""

    def __init__(self, nodes: Iterable[Apply]) -> None:
        self._bits: dict[Region, int] = {}
        self._returns: list[tuple[Apply, int]] = []  # with its region, by their own bits
        self._returns_of: dict[int, int] = {}  # the Returns of a region
        self._regions: dict[int, int] = {}  # by the Returns asked for
        self._within: dict[Variable, int] = {}  # the regions in whose forward pass a variable lies
        self._depends: dict[Apply, int] = {}  # the Returns that a node depends on
        after: dict[Variable, int] = {}  # the Returns that a variable depends on
        for node in nodes:
            self._depends[node] = _union(after.get(v, 0) for v in node.inputs)
            within = _union(self._within.get(v, 0) for v in node.inputs)
            seen = self._depends[node]
            if isinstance(node.op, Mark):
                region = self._bits.setdefault(node.op.region, 1 << len(self._bits))
                if isinstance(node.op, Return):
                    own = 1 << len(self._returns)
                    self._returns.append((node, region))
                    self._returns_of[region] = self._returns_of.get(region, 0) | own
                    seen |= own
                within = within | region if isinstance(node.op, Enter) else within & ~region
            elif isinstance(node.op, ShardReduction):
                within = 0  # an exchange between devices is not worth repeating, and its result is small
            within &= ~self._regions_of(seen)
            self._within.update(dict.fromkeys(node.outputs, within))
            after.update(dict.fromkeys(node.outputs, seen))
        self._weight = shard_weight()  # which no compiler knows (``lowering.recomputation``)
        self._built: dict[Place, list[Variable]] = {}
        self._later: dict[tuple[Variable, int], Variable] = {}

    def rebuilt(self, outputs: Sequence[Variable]) -> list[Variable]:
        """Without recursion: a deep network's nodes are thousands."""
        stack = [(v.owner, 0) for v in outputs if v.owner is not None]
        while stack:
            missing = [place for place in self._needed(*stack[-1]) if place not in self._built]
            if missing:
                stack.extend(missing)
                continue
            place = stack.pop()
            if place not in self._built:
                self._built[place] = self._copy(*place)
        return [self._at(v, 0) for v in outputs]

    def _needed(self, node: Apply, returns: int) -> list[Place]:
        """The places that have to be built before this one."""
        operands = [self._source(v, returns or self._depends[node]) for v in node.inputs]
        operands += [self._source(v, self._depends[back]) for back in self._waits(returns) for v in back.inputs]
        return [(v.owner, mask) for v, mask in operands if v.owner is not None]

    def _copy(self, node: Apply, returns: int) -> list[Variable]:
        seen = returns or self._depends[node]
        inputs = [self._at(*self._source(v, seen)) for v in node.inputs]
        if isinstance(node.op, Mark):
            region = self._bits[node.op.region]
            mine = returns & self._returns_of.get(region, 0) if isinstance(node.op, Enter) else 0
            return [self._after(v, mine) for v in inputs] if mine else inputs
        if returns:
            # A generator's key is the same at any time: without waiting, a mask would be one with the original.
            inputs = [self._after(v, returns) if isinstance(v.type, RandomType) else v for v in inputs]
        if all(new is old for new, old in zip(inputs, node.inputs, strict=True)):
            return list(node.outputs)
        return list(node.clone_with_new_inputs(inputs).outputs)

    def _source(self, variable: Variable, seen: int) -> tuple[Variable, int]:
        """What a consumer that depends on these Returns is given: the copy for some of them, or for none the original.

        The copy of a shape would be the shape of a copy: the values are not needed for it.
        """
        regions = self._within.get(variable, 0) & self._regions_of(seen)
        if not regions or isinstance(variable.owner.op, (Shape, Shape_i)):
            return variable, 0
        return variable, seen & _union(self._returns_of[1 << i] for i in _members(regions))

    def _at(self, variable: Variable, returns: int) -> Variable:
        if variable.owner is None:
            return variable
        return self._built[variable.owner, returns][variable.owner.outputs.index(variable)]

    def _after(self, variable: Variable, returns: int) -> Variable:
        if (variable, returns) not in self._later:
            cotangents = [
                self._at(*self._source(v, self._depends[back])) for back in self._waits(returns) for v in back.inputs
            ]
            self._later[variable, returns] = After()(variable, self._weight, *cotangents)
        return self._later[variable, returns]

    def _waits(self, returns: int) -> list[Apply]:
        return [self._returns[i][0] for i in _members(returns)]

    def _regions_of(self, returns: int) -> int:
        if returns not in self._regions:
            self._regions[returns] = _union(self._returns[i][1] for i in _members(returns))
        return self._regions[returns]


def _union(sets: Iterable[int]) -> int:
    union = 0
    for bits in sets:
        union |= bits
    return union


def _members(bits: int) -> Iterator[int]:
    while bits:
        lowest = bits & -bits
        yield lowest.bit_length() - 1
        bits ^= lowest
