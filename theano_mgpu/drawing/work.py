"""The operations of a program: those that matter one by one, elementwise ones and views in sum."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from typing import Any

from pytensor.graph.basic import Apply
from pytensor.graph.traversal import toposort
from pytensor.scalar import Cast
from pytensor.tensor.basic import Alloc, MakeVector, ScalarFromTensor, TensorFromScalar
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.shape import Reshape, Shape, Shape_i, SpecifyShape
from pytensor.tensor.subtensor import Subtensor

from theano_mgpu.averages import LossScale, ShardReduction, ShardWeight
from theano_mgpu.cut import Program
from theano_mgpu.regions import Mark, Return

__all__ = ["Operation", "Work", "sampled", "work"]

_VIEWS = (
    *(Alloc, DimShuffle, LossScale, MakeVector, Mark, Reshape, ScalarFromTensor, Shape, Shape_i),
    *(ShardWeight, SpecifyShape, Subtensor, TensorFromScalar),
)


@dataclass(frozen=True)
class Operation:
    """One kind of op that matters, with its gradients; ``channels`` are its results' least and largest last axis."""

    name: str
    count: int
    gradients: int = 0
    channels: tuple[int, int] | None = None

    @property
    def label(self) -> str:
        """ "Conv2d 64..2048"."""
        if self.channels is None:
            return self.name
        low, high = self.channels
        return f"{self.name} {low}" if low == high else f"{self.name} {low}..{high}"


@dataclass(frozen=True)
class Work:
    """A program's nodes, by kind.

    ``order`` lists the nodes that matter as they run: position in ``operations``, and whether it is a gradient.
    """

    nodes: int
    operations: tuple[Operation, ...]
    order: tuple[tuple[int, bool], ...]
    elementwise: Counter[str]
    reductions: Counter[str]
    views: int
    collectives: int  # averages and totals that the devices need again themselves
    regions: int  # whose activations the backward pass computes again

    @property
    def rest(self) -> tuple[str, ...]:
        """The nodes besides ``operations``, in sum."""
        kinds = (("elementwise", self.elementwise), ("reducing", self.reductions))
        lines = [f"{counts.total():,} {kind}: {_commonest(counts)}" for kind, counts in kinds if counts]
        lines += [f"{self.collectives:,} averaging between the devices"] if self.collectives else []
        lines += [f"{self.regions:,} regions computed again in the backward pass"] if self.regions else []
        lines += [f"{self.views:,} of shapes, casts and views"] if self.views else []
        return tuple(lines)


def work(program: Program) -> Work:
    nodes = list(toposort(program.outputs))
    kinds: dict[str, list[tuple[str, Apply]]] = {
        "operation": [],
        "elementwise": [],
        "reduction": [],
        "view": [],
        "collective": [],
    }
    for node in nodes:
        kind, name = _kind(node.op)
        kinds[kind].append((name, node))
    matter = kinds["operation"]
    bases = _bases({name for name, _ in matter})
    forward = Counter(name for name, _ in matter if name == bases[name])
    gradients = Counter(bases[name] for name, _ in matter if name != bases[name])
    ranked = sorted(forward, key=lambda name: (-forward[name] - gradients[name], name))
    return Work(
        nodes=len(nodes),
        operations=tuple(
            Operation(name, forward[name], gradients[name], _channels([n for own, n in matter if own == name]))
            for name in ranked
        ),
        order=tuple((ranked.index(bases[name]), name != bases[name]) for name, _ in matter),
        elementwise=Counter(name for name, _ in kinds["elementwise"]),
        reductions=Counter(name for name, _ in kinds["reduction"]),
        views=len(kinds["view"]),
        collectives=len(kinds["collective"]),
        regions=len({node.op.region for node in nodes if isinstance(node.op, Return)}),
    )


def sampled(order: tuple[tuple[int, bool], ...], most: int) -> list[tuple[int, bool]]:
    """At most ``most`` of them in order, each kind as often as its share: at each place the one most in arrears."""
    if len(order) <= most:
        return list(order)
    due: dict[tuple[int, bool], float] = {}
    sampled = []
    for i in range(most):
        for item in order[i * len(order) // most : (i + 1) * len(order) // most]:
            due[item] = due.get(item, 0) + most / len(order)
        chosen = max(due, key=lambda item: due[item])
        due[chosen] -= 1
        sampled.append(chosen)
    return sampled


def _kind(op: Any) -> tuple[str, str]:
    op = getattr(op, "core_op", op)  # what a Blockwise repeats
    name = type(op).__name__
    if isinstance(op, ShardReduction):
        return "collective", name
    if isinstance(op, _VIEWS):
        return "view", name
    if isinstance(op, Elemwise):
        scalar = op.scalar_op
        if isinstance(scalar, Cast):
            return "view", name
        return "elementwise", str(getattr(scalar, "name", None) or type(scalar).__name__).lower()
    if isinstance(op, CAReduce):
        return "reduction", name.lower()
    return "operation", name


def _bases(names: set[str]) -> dict[str, str]:
    """Each op's own name, or for "Conv2dInputGradient" that of the op that it is a gradient of, where that is here."""
    return {
        name: max(
            (other for other in names if name.startswith(other) and name.endswith(("Gradient", "Grad"))),
            key=lambda other: (other != name, len(other)),
            default=name,
        )
        for name in names
    }


def _channels(nodes: list[Apply]) -> tuple[int, int] | None:
    shapes: list[tuple[int | None, ...]] = [getattr(node.outputs[0].type, "shape", ()) for node in nodes]
    lengths = [shape[-1] for shape in shapes if len(shape) >= 2 and shape[-1] is not None]
    return (min(lengths), max(lengths)) if lengths and len(lengths) == len(nodes) else None


def _commonest(counts: Counter[str], most: int = 3) -> str:
    shown = [f"{count:,} {name}" for name, count in counts.most_common(most)]
    return ", ".join([*shown, "..."] if len(counts) > most else shown)
