"""``recompute``: a region of the graph whose activations the backward pass computes again.

    x ── Enter ──▶ block ──▶ Leave ──▶ ... loss
                                        │
    x' ◀──────── pullbacks ◀── Return ◀─┘

The three ops are identities that mark where a region begins, where it ends, and where the backward pass comes back into
it. A plain ``pytensor.function`` runs the graph as it stands; ``recomputation`` reads the marks for the devices.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply, Constant, Variable

from theano_mgpu.compatibility import OpWithShapes

__all__ = ["Enter", "Leave", "Mark", "Region", "Return", "recompute"]


class Region:
    """One call of one block: equal to itself alone, so that no two regions' ops are ever merged."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __repr__(self) -> str:
        return self.name


class Mark(OpWithShapes):
    """As many outputs as inputs, each the input of its place itself."""

    __props__ = ("region", "count")

    def __init__(self, region: Region, count: int) -> None:
        self.region = region
        self.count = count
        self.view_map = {i: [i] for i in range(count)}

    def make_node(self, *variables: Variable) -> Apply:
        return Apply(self, list(variables), [v.type(name=v.name) for v in variables])

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: list[list[Any]]) -> None:
        for cell, value in zip(output_storage, inputs, strict=True):
            cell[0] = value

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        return input_shapes

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[i == j for j in range(len(node.outputs))] for i in range(len(node.inputs))]

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        return list(cotangents)

    def pushforward(self, inputs: Any, outputs: Any, tangents: Any) -> list[Any]:
        return list(tangents)

    def do_constant_folding(self, fgraph: Any, node: Apply) -> bool:
        return False


class Enter(Mark):
    """A block's arguments."""


class Leave(Mark):
    """A block's results. Their cotangents come back through ``Return``, all of one backward pass together."""

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        returned = list(cotangents)
        connected = [i for i, g in enumerate(returned) if not isinstance(g.type, DisconnectedType)]
        back = Return(self.region, len(connected)).make_node(*(returned[i] for i in connected))
        for i, g in zip(connected, back.outputs, strict=True):
            returned[i] = g
        return returned


class Return(Mark):
    """The cotangents of a block's results: what depends on them is the region's backward pass."""


def recompute(block: Callable[..., Any]) -> Callable[..., Any]:
    """``block`` with its activations computed again in the backward pass instead of kept for it: memory for time.

    ``recompute(block)(x, ...)`` is ``block(x, ...)``, with the same gradients. A device keeps the arguments; when the
    backward pass comes to the block, everything in it that depends on them is computed again, up to what the gradients
    need. With a network of n blocks recomputed one by one, n arguments and one block's activations are in memory at a
    time, for one more forward pass. Regions may be nested.

    Parameters:
        block: a function of variables. Parameters, random generators and whatever does not depend on its arguments are
            used inside as always, and draw and register with a store as always: updates, averages and outputs are of
            the forward pass. An average inside (synchronised batch norm) is kept, not computed again.

    Returns a function of one or more variables, also by keyword, of any type. It returns what ``block`` returns: a
    variable, or lists and tuples of variables. In a plain ``pytensor.function`` and inside a ``scan`` nothing is
    computed again.

    Raises TypeError for a block that is no function; when called, for an argument or a result that is no variable.

    Chen et al., "Training deep nets with sublinear memory cost", 2016, section 3.
    """
    if not callable(block):
        raise TypeError(
            f"recompute(): expected a function that builds a part of the graph, got {block!r}. Write "
            f"recompute(lambda x: ...)(x), with the variable in the second call."
        )
    name = getattr(block, "__name__", type(block).__name__)

    def in_region(*arguments: Variable, **keywords: Variable) -> Any:
        given = {**{f"argument {i + 1}": v for i, v in enumerate(arguments)}, **keywords}
        _require_arguments(name, given)
        region = Region(name)
        entered = Enter(region, len(given)).make_node(*given.values()).outputs
        named = dict(zip(keywords, entered[len(arguments) :], strict=True))
        results = block(*entered[: len(arguments)], **named)
        flat = _variables(name, results)
        left = iter(Leave(region, len(flat)).make_node(*flat).outputs)
        return _filled(results, left)

    return in_region


def _require_arguments(block: str, arguments: dict[str, Any]) -> None:
    if not arguments:
        raise TypeError(
            f"recompute({block})(): expected at least one variable, the input that activations are computed again "
            f"from, got none. Pass {block} its input here: recompute({block})(x)."
        )
    for position, value in arguments.items():
        if not isinstance(value, Variable) or isinstance(value, Constant):
            raise TypeError(
                f"recompute({block})(): {position} should be a symbolic variable, not {_described(value)}. Bind "
                f"numbers, arrays, options and constants beforehand: "
                f"recompute(lambda x: {block}(x, {'option' if isinstance(value, Variable) else repr(value)[:40]}))(x)."
            )


def _variables(block: str, results: Any) -> list[Variable]:
    """The variables of nested lists and tuples, in order."""
    if isinstance(results, Variable):
        return [results]
    if isinstance(results, (list, tuple)) and results:
        return [variable for result in results for variable in _variables(block, result)]
    raise TypeError(
        f"recompute({block})(): {block} should return a variable, or lists and tuples of variables, but returned "
        f"{_described(results)}. Return what the rest of the graph needs of it, as symbolic variables."
    )


def _filled(form: Any, variables: Any) -> Any:
    if isinstance(form, Variable):
        return next(variables)
    make = getattr(form, "_make", type(form))  # a named tuple takes its entries one by one
    return make([_filled(part, variables) for part in form])


def _described(value: Any) -> str:
    return f"the constant {value}" if isinstance(value, Constant) else f"{type(value).__name__} {value!r}"[:100]
