"""One symbolic graph, cut at its averages into a device part and a host part. No JAX here.

inputs (batch)      shared variables                        host
   │ split              │ mirror                             │
   ▼                    ▼                                    │
 ┌───────────── device program ─────────────┐   averages   ┌─▼──── host program ─────┐
 │ forward, loss, backward: once per shard  │ ───────────► │ stack, mean, update rule │──► new shared values
 └──────────────────────────────────────────┘   (gather)   └──────────────────────────┘
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable, clone_get_equiv
from pytensor.graph.replace import clone_replace
from pytensor.graph.traversal import ancestors, toposort
from pytensor.tensor.random.type import RandomType

from theano_mgpu.averages import Average, GradientAverage, ShardReduction, ShardWeight
from theano_mgpu.errors import CutError

__all__ = ["Cut", "Program", "Reduction", "cut", "program"]


@dataclass(frozen=True)
class Program:
    """A graph from its inputs (explicit ones first, then shared variables) to its outputs."""

    inputs: tuple[Variable, ...]
    shared: tuple[SharedVariable, ...]
    outputs: tuple[Variable, ...]


@dataclass(frozen=True)
class Reduction:
    """Where the cut passes: ``value`` on every shard becomes ``placeholder``, one value of the batch, on the host."""

    value: Variable
    placeholder: Variable
    kind: str  # "average", "total", "maximum" or "minimum"
    of_gradient: bool = False  # an average that ``grad`` made, to be divided by the loss scale

    @property
    def label(self) -> str:
        return f"{self.kind} of {self.placeholder.name or self.value.name or 'unnamed'}"


@dataclass(frozen=True)
class Output:
    """Where one output comes from: ``per_example`` ones from the device part, the others from the host part."""

    per_example: bool
    index: int  # among the device part's per-example outputs, or the host part's outputs


@dataclass(frozen=True)
class Cut:
    """The device part, the reductions between, the host part; a value that prints as a diagram.

    ``device.outputs`` are the reductions' values, then the per-example outputs. ``host.inputs`` are the reductions'
    placeholders, then the inputs that go whole to every device. ``host.outputs`` are the plain outputs, then the new
    values of ``updated``. ``generators`` are random generators with an update.
    """

    split: tuple[Variable, ...]
    whole: tuple[Variable, ...]
    device: Program
    reductions: tuple[Reduction, ...]
    host: Program
    outputs: tuple[Output, ...]
    updated: tuple[SharedVariable, ...]
    generators: tuple[SharedVariable, ...]

    @property
    def per_example(self) -> tuple[Variable, ...]:
        return self.device.outputs[len(self.reductions) :]

    def __str__(self) -> str:
        from theano_mgpu.drawing.text import diagram  # a drawing reads cuts, so it cannot be imported above

        return diagram(self)


def cut(
    inputs: Sequence[Variable],
    outputs: Sequence[Variable],
    updates: Mapping[SharedVariable, Variable],
    broadcast: Sequence[Variable] = (),
) -> Cut:
    """Cut the graph from ``inputs`` to ``outputs`` and ``updates`` at its averages.

    Raises CutError, naming the variable and the remedy, for an update or a scalar output that depends on the batch
    without passing an average.
    """
    whole = tuple(v for v in inputs if v.type.ndim == 0 or v in broadcast)
    split = tuple(v for v in inputs if v not in whole)
    generators = tuple(v for v in updates if isinstance(v.type, RandomType))
    updated = tuple(v for v in updates if v not in generators)
    new_values = [updates[v] for v in updated]

    batch = _BatchData([*outputs, *new_values], split)
    for variable, new_value in zip(updated, new_values, strict=True):
        if new_value in batch:
            raise CutError(
                f"updates: the new value of {_name(variable)} depends on the batch ({batch.path(new_value)}) without "
                f"passing an average, so that it has no single value over all devices. Wrap what the update needs "
                f"of the batch in tm.average(...) or tm.total(...); for gradients use tm.grad instead of pytensor.grad."
            )
    kinds = [output in batch for output in outputs]
    for output, per_example in zip(outputs, kinds, strict=True):
        if per_example and output.type.ndim == 0:
            raise CutError(
                f"outputs: the scalar {_name(output)} depends on the batch ({batch.path(output)}) without passing an "
                f"average. Return tm.average({_name(output)}) or tm.total({_name(output)})."
            )
    per_example_outputs = [o for o, per_example in zip(outputs, kinds, strict=True) if per_example]
    host_outputs = [*(o for o, per_example in zip(outputs, kinds, strict=True) if not per_example), *new_values]

    frontier = _frontier(host_outputs)
    reductions = tuple(_reduction(v) for v in frontier)
    placeholders = dict(zip(frontier, (r.placeholder for r in reductions), strict=True))
    host_graph = _with_placeholders(host_outputs, placeholders)
    device_graph = _without_idle_averages((*(r.value for r in reductions), *per_example_outputs), split)
    reductions = tuple(replace(r, value=v) for r, v in zip(reductions, device_graph, strict=False))
    return Cut(
        split=split,
        whole=whole,
        device=program((*split, *whole), device_graph),
        reductions=reductions,
        host=program((*placeholders.values(), *whole), host_graph),
        outputs=_positions(kinds),
        updated=updated,
        generators=generators,
    )


class _BatchData:
    """Which variables depend on batch data, or with ``random`` on a draw too, without an average between."""

    def __init__(self, outputs: Sequence[Variable], split: Sequence[Variable], *, random: bool = False) -> None:
        self._through: dict[Variable, Variable | None] = dict.fromkeys(split)
        for node in toposort(outputs):
            if isinstance(node.op, ShardReduction):
                continue
            origin = next((v for v in node.inputs if v in self._through), None)
            draws = random and any(isinstance(v.type, RandomType) for v in node.outputs)
            if origin is None and not draws and not isinstance(node.op, ShardWeight):
                continue
            for output in node.outputs:
                # A generator's state descends from the draw's size, not from the data.
                if not isinstance(output.type, RandomType):
                    self._through[output] = origin

    def __contains__(self, variable: Variable) -> bool:
        return variable in self._through

    def path(self, variable: Variable) -> str:
        steps: list[str] = []
        step: Variable | None = variable
        while step is not None:
            steps.append(_name(step))
            step = self._through[step]
        shown = steps if len(steps) <= 6 else [*steps[:3], "...", *steps[-2:]]
        return " <- ".join(shown)


def _without_idle_averages(outputs: tuple[Variable, ...], split: Sequence[Variable]) -> tuple[Variable, ...]:
    """The graph less averages of what is the same on every shard, such as the pullback of a total's."""
    differing = _BatchData(outputs, split, random=True)
    idle = {
        node.outputs[0]: node.op.of_one_shard(node.inputs[0])
        for node in toposort(outputs)
        if isinstance(node.op, Average) and node.inputs[0] not in differing
    }
    return tuple(clone_replace(outputs, replace=idle)) if idle else outputs


def _frontier(outputs: Sequence[Variable]) -> list[Variable]:
    """The averages that the host part starts from, in topological order."""
    seen: set[Variable] = set()
    found: set[Variable] = set()
    stack = list(outputs)
    while stack:
        variable = stack.pop()
        if variable in seen or variable.owner is None:
            continue
        seen.add(variable)
        if isinstance(variable.owner.op, ShardReduction):
            found.add(variable)
        else:
            stack.extend(variable.owner.inputs)
    return [v for node in toposort(outputs) for v in node.outputs if v in found]


def _reduction(reduced: Variable) -> Reduction:
    op = reduced.owner.op
    return Reduction(reduced.owner.inputs[0], _placeholder(reduced), op.kind, isinstance(op, GradientAverage))


def _placeholder(average: Variable) -> Variable:
    return average.type(name=average.name or average.owner.inputs[0].name)


def _with_placeholders(outputs: Sequence[Variable], placeholders: Mapping[Variable, Variable]) -> tuple[Variable, ...]:
    """``clone_replace``, in one pass instead of two."""
    computed = [v for v in outputs if v.owner is not None]
    clones = clone_get_equiv(placeholders, computed, copy_inputs=False, copy_orphans=False, memo=dict(placeholders))
    return tuple(clones.get(v, v) for v in outputs)


def program(inputs: Iterable[Variable], outputs: tuple[Variable, ...]) -> Program:
    used = dict.fromkeys(ancestors(outputs))
    shared = tuple(v for v in used if isinstance(v, SharedVariable))
    return Program(tuple(v for v in inputs if v in used), shared, outputs)


def _positions(kinds: Sequence[bool]) -> tuple[Output, ...]:
    return tuple(Output(kind, kinds[:i].count(kind)) for i, kind in enumerate(kinds))


def _name(variable: Variable) -> str:
    if variable.name:
        return str(variable.name)
    if variable.owner is None:
        return str(variable)
    return f"{variable.owner.op}.out" if len(str(variable.owner.op)) < 40 else f"{type(variable.owner.op).__name__}.out"
