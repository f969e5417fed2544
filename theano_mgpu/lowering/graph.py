"""A PyTensor graph to XLA: rewritten once, then walked while JAX traces.

The walk computes at once, in numpy, what is known while tracing (shapes, and the sizes, ranges and indices that follow
from them) with each op's own ``perform``; every other node goes through PyTensor's ``jax_funcify``. So scans over a
batch of unknown size, reshapes and slices by symbolic sizes and draws of the batch's size all lower.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import warnings
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np
import pytensor
from pytensor.compile.builders import OpFromGraph
from pytensor.compile.mode import optdb
from pytensor.graph.basic import Apply, Constant, Variable
from pytensor.graph.fg import FunctionGraph
from pytensor.graph.op import Op
from pytensor.graph.rewriting.db import RewriteDatabaseQuery
from pytensor.raise_op import CheckAndRaise
from pytensor.scan.op import Scan
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.shape import Shape, Shape_i
from pytensor.tensor.type import TensorType

from theano_mgpu.averages import GradientAverage, LossScale, ShardReduction, ShardWeight
from theano_mgpu.compatibility import WRITES_INTO_FIRST_INPUT, mutable_copy
from theano_mgpu.cut import Program
from theano_mgpu.errors import UnsupportedGraphError
from theano_mgpu.lowering.dispatch import jax_funcify, lowers, no_checks, require
from theano_mgpu.lowering.look_ups import is_look_up, looked_up, whole
from theano_mgpu.lowering.precision import FLOAT32, Precision
from theano_mgpu.pieces import Pieces
from theano_mgpu.recomputation import recomputed

__all__ = ["Lowered", "Shard", "lower"]

# XLA fuses and simplifies by itself; stabilise keeps log(softmax(x)) and its like finite, as in plain PyTensor.
_REWRITES = optdb.query(
    RewriteDatabaseQuery(
        include=["merge", "canonicalize", "stabilize", "jax"],
        exclude=[
            "cxx_only",
            "BlasOpt",
            "local_careduce_fusion",
            "scan_reduce_trace_prealloc",
            "inplace",
            # Looks for the shape of what it broadcasts through the whole network: a quarter of ResNet-50's rewriting.
            "local_second_to_alloc",
        ],
    )
)
# Larger constants travel as arguments: XLA folds constants it can see, slowly (pytensor issue 1224).
_LARGEST_CONSTANT = 2**20  # bytes
# Larger known arrays are left to the device.
_LARGEST_KNOWN = 2**12  # elements


# What all shards give, of a node and the parts that shards on one device have.
Reduce: TypeAlias = Callable[[Apply, Sequence[Any]], Any]


@dataclass(frozen=True)
class Shard:
    """What a shard knows of itself while its part is traced."""

    weight: Any  # its number of examples over the batch's
    loss_scale: Any = None  # float32, where the precision has one

    def part(self, kind: str, value: Any, of_gradient: bool) -> Any:
        """The shard's part in a reduction: of an average weighted, of a gradient with the loss scale taken out."""
        if kind != "average":
            return value
        weight = self.weight / self.loss_scale if of_gradient and self.loss_scale is not None else self.weight
        return value * weight.astype(value.dtype)


@dataclass(frozen=True)
class Lowered:
    """A rewritten program: ``trace`` it inside a JAX transformation, with ``constants`` as the last arguments."""

    graph: FunctionGraph
    constants: tuple[np.ndarray, ...]
    precision: Precision

    @functools.cached_property
    def has_collectives(self) -> bool:
        """An average's value is needed again below the cut, as in synchronised batch norm."""
        return any(isinstance(node.op, ShardReduction) for node in self.graph.apply_nodes)

    def trace(self, arguments: Sequence[Any]) -> list[Any]:
        """The outputs for ``arguments``: inputs, shared variables, constants; of a graph without shards.

        Random generators are keys, uint32[2]; resident data is pieces.
        """
        (outputs,) = self.trace_shards([arguments], [None], _refuse_to_reduce)
        return outputs

    def trace_shards(
        self, arguments: Sequence[Sequence[Any]], shards: Sequence[Shard | None], reduce: Reduce
    ) -> list[list[Any]]:
        """The outputs of several shards on one device, side by side: what one average needs of another, all give.

        ``reduce`` takes a node of ``ShardReduction`` and the shards' parts, to what all shards of all devices give.
        """
        walks = [
            _walk(self.graph, own, _Walk(shard, self.precision), outputs_in_full=True)
            for own, shard in zip(arguments, shards, strict=True)
        ]
        return [
            [FLOAT32.settled(value, variable) for value, variable in zip(values, self.graph.outputs, strict=True)]
            for values in _side_by_side(walks, reduce)
        ]


def lower(program: Program, precision: Precision = FLOAT32) -> Lowered:
    """Rewrite a program and refuse, by name, what cannot run on a device."""
    graph = FunctionGraph([*program.inputs, *program.shared], recomputed(program.outputs), clone=True)
    graph.has_loss_scale = precision.is_scaled
    # New nodes inherit their origins' traces; looking up the stack for each took a fifth of the time.
    with warnings.catch_warnings(), pytensor.config.change_flags(traceback__limit=0):
        warnings.simplefilter("ignore")
        _REWRITES.rewrite(graph)
    _refuse_data_dependent_shapes(graph)
    large = [v for v in graph.variables if isinstance(v, Constant) and getattr(v.data, "nbytes", 0) > _LARGEST_CONSTANT]
    for constant in large:
        argument = constant.type(name=constant.name)
        graph.add_input(argument)
        graph.replace(constant, argument, reason="large constant", import_missing=True)
    return Lowered(graph, tuple(np.asarray(v.data) for v in large), precision)


_DATA_DEPENDENT = ("Nonzero", "Unique", "AdvancedBooleanSubtensor", "AdvancedBooleanIncSubtensor")


def _refuse_data_dependent_shapes(graph: FunctionGraph) -> None:
    for node in graph.toposort():
        masks = [
            v
            for v in node.inputs[1:]
            if "Advanced" in type(node.op).__name__ and isinstance(v.type, TensorType) and v.type.dtype == "bool"
        ]
        if type(node.op).__name__ in _DATA_DEPENDENT or masks:
            raise UnsupportedGraphError(
                f"{_described(node)} has a shape that depends on the data, which devices cannot compile. "
                f"Multiply by the mask or use pt.where(mask, x, 0) instead of selecting by it."
            )


@dataclass(frozen=True)
class _Walk:
    shard: Shard | None
    precision: Precision
    full: frozenset[Variable] = frozenset()  # what of the graph at hand no value narrower than declared stands for


# Yields where all shards' values are needed, is sent what they give, and returns the outputs.
_Walking: TypeAlias = Generator[tuple[Apply, Any], Any, list[Any]]


def _side_by_side(walks: Sequence[_Walking], reduce: Reduce) -> list[list[Any]]:
    """The walks' outputs. They are of one graph, so that they ask for the same reductions in the same order."""
    given = None
    while True:
        asked, outputs = [], []
        for walk in walks:
            try:
                asked.append(walk.send(given))
            except StopIteration as end:
                outputs.append(end.value)
        if outputs:
            return outputs
        given = reduce(asked[0][0], [part for _, part in asked])


def _refuse_to_reduce(node: Apply, parts: Sequence[Any]) -> Any:
    raise UnsupportedGraphError(f"{_described(node)} stands where there are no shards: inside a loop.")


def _walk(graph: FunctionGraph, arguments: Sequence[Any], walk: _Walk, *, outputs_in_full: bool) -> _Walking:
    walk = replace(walk, full=walk.precision.wanted_in_full(graph, outputs=outputs_in_full))
    values: dict[Variable, Any] = {}
    for variable, argument in zip(graph.inputs, arguments, strict=True):
        values[variable] = {"jax_state": argument} if _is_bare_key(variable, argument) else argument
    for node in graph.toposort():
        inputs = [v.data if isinstance(v, Constant) else values[v] for v in node.inputs]
        if isinstance(node.op, ShardReduction):
            outputs = [(yield node, _part(node, whole(inputs[0]), walk))]
        elif _is_inline(node.op):
            outputs = yield from _walk(_inner_graph(node.op, walk.precision), inputs, walk, outputs_in_full=False)
        else:
            outputs = list(_compute(node, inputs, walk))
        for variable, value in zip(node.outputs, outputs, strict=True):
            values[variable] = value
    return [v.data if isinstance(v, Constant) else whole(values[v]) for v in graph.outputs]


def _is_bare_key(variable: Variable, argument: Any) -> bool:
    return isinstance(variable.type, RandomType) and not isinstance(argument, dict)


def _compute(node: Apply, inputs: list[Any], walk: _Walk) -> Sequence[Any]:
    op = node.op
    if isinstance(op, Shape):
        return [np.asarray(np.shape(inputs[0]), dtype=np.int64)]
    if isinstance(op, Shape_i):
        return [np.asarray(np.shape(inputs[0])[op.i], dtype=np.int64)]
    if isinstance(op, ShardWeight):
        return [np.float64(1) if walk.shard is None else walk.shard.weight]
    if isinstance(op, LossScale):
        return [np.float32(1) if walk.shard is None or walk.shard.loss_scale is None else walk.shard.loss_scale]
    if isinstance(op, CheckAndRaise):
        return [_check(op, node, inputs)]
    if all(map(_is_known, inputs)) and _is_small(node, inputs) and not _draws(node):
        return _perform(node, inputs)
    if is_look_up(node, inputs):
        return [looked_up(node, inputs)]
    return _lowered(node, [whole(value) for value in inputs], walk)


def _part(node: Apply, value: Any, walk: _Walk) -> Any:
    """What the shard has for a reduction."""
    value = walk.precision.settled(value, node.inputs[0])
    return value if walk.shard is None else walk.shard.part(node.op.kind, value, isinstance(node.op, GradientAverage))


def _is_inline(op: Op) -> bool:
    return isinstance(op, OpFromGraph) and jax_funcify.dispatch(type(op)) is jax_funcify.dispatch(OpFromGraph)


def _is_known(value: Any) -> bool:
    return not isinstance(value, (jax.Array, Pieces, dict))


def _is_small(node: Apply, inputs: Sequence[Any]) -> bool:
    sizes = [np.size(v) for v in inputs if isinstance(v, np.ndarray)]
    static = [v.type.shape for v in node.outputs if isinstance(v.type, TensorType)]
    sizes += [int(np.prod(shape)) for shape in static if None not in shape]
    # An output of unknown size may be as large as its inputs' values say: np.arange(10**9).
    if any(None in shape for shape in static):
        sizes += [
            abs(np.asarray(v).item()) for v in inputs if isinstance(v, (np.ndarray, np.integer)) and np.size(v) == 1
        ]
        sizes += [int(np.prod(v)) for v in inputs if isinstance(v, np.ndarray) and v.ndim == 1 and v.dtype == np.int64]
    return all(size <= _LARGEST_KNOWN for size in sizes)


def _draws(node: Apply) -> bool:
    return any(isinstance(v.type, RandomType) for v in node.inputs)


def _perform(node: Apply, inputs: Sequence[Any]) -> list[Any]:
    if type(node.op).__name__ == "JAXShapeTuple":  # its perform is not PyTensor's
        return [tuple(int(v) for v in inputs)]
    storage: list[list[Any]] = [[None] for _ in node.outputs]
    node.op.perform(node, list(inputs), storage)
    return [cell[0] for cell in storage]


def _check(op: CheckAndRaise, node: Apply, inputs: Sequence[Any]) -> Any:
    value, *conditions = inputs
    for condition in conditions:
        if _is_known(condition):
            if not np.all(condition):
                raise op.exc_type(op.msg)
        elif not require(jnp.all(condition), op.exc_type, op.msg.replace("{", "{{").replace("}", "}}")):
            warnings.warn(f"{_described(node)} is not checked inside a loop: {op.msg}", stacklevel=2)
    return value


def _lowered(node: Apply, inputs: list[Any], walk: _Walk) -> Sequence[Any]:
    op, concrete = node.op, _with_known_inputs(node, inputs)
    if isinstance(op, Scan):
        op = copy.copy(op)
        op.fgraph = _InnerGraph(op.fgraph, walk)
    precision = walk.precision
    arguments = [_argument(node, i, value) for i, value in enumerate(inputs)]
    in_full = precision.product_in_full(node) if node.outputs[0] in walk.full else None
    try:
        with no_checks() if isinstance(op, Scan) else contextlib.nullcontext():
            run = in_full or jax_funcify(precision.retyped(op), node=concrete)
            results = run(*precision.operands(node, arguments, walk.full))
    except (NotImplementedError, jax.errors.JAXTypeError) as error:
        raise UnsupportedGraphError(f"{_described(node)} cannot run on the devices: {_first_line(error)}") from error
    except (TypeError, ValueError, IndexError) as error:
        # JAX's words for a slice or a shape by a number that is known only when the step runs.
        if any(words in str(error) for words in ("must be static", "must have static", "concrete values")):
            raise UnsupportedGraphError(
                f"{_described(node)} has a shape that depends on the data: {_first_line(error)}. Look rows up by an "
                f"array of indices instead of slicing by a number that changes from call to call."
            ) from error
        shapes = ", ".join(_typed(value) for value in inputs)
        raise ValueError(f"{_described(node)} does not fit its inputs {shapes}: {_first_line(error)}") from error
    if len(node.outputs) == 1 and not (isinstance(results, (list, tuple)) and len(results) == 1):
        results = [results]
    return precision.results(node, arguments, results, walk.full)


def _with_known_inputs(node: Apply, inputs: Sequence[Any]) -> Apply:
    """The node with what is known as constants: what a dispatch needs to be concrete, it looks for there."""
    known = [
        not isinstance(variable, Constant) and _is_known(value)
        for variable, value in zip(node.inputs, inputs, strict=True)
    ]
    if not any(known):
        return node
    try:
        fixed = [
            variable.type.make_constant(
                value if value is None or isinstance(value, (slice, tuple)) else np.asarray(value)
            )
            if is_known
            else variable
            for variable, value, is_known in zip(node.inputs, inputs, known, strict=True)
        ]
        return node.op.make_node(*fixed)
    except (TypeError, ValueError):
        return node


def _argument(node: Apply, position: int, value: Any) -> Any:
    """A known value as the dispatch wants it: integers concrete, floats and arrays written into on the device."""
    if isinstance(value, dict):
        return dict(value)  # a dispatch advances the key in place
    if not isinstance(value, (np.ndarray, np.generic)):
        return value
    written = isinstance(node.op, WRITES_INTO_FIRST_INPUT) and position == 0
    large = np.size(value) > _LARGEST_KNOWN
    # The size of a draw and lengths stay numpy: they are used as Python numbers.
    if written or large or value.dtype.kind not in "iub":
        return jnp.asarray(value)
    return np.asarray(value)[()] if value.ndim == 0 else value  # numpy's scalars hash, as static arguments must


def _inner_graph(op: OpFromGraph, precision: Precision) -> FunctionGraph:
    graph = mutable_copy(op.fgraph)
    graph.has_loss_scale = precision.is_scaled
    _REWRITES.rewrite(graph)
    # Stabilising the body of PyTensor 3.3's logsumexp finds logsumexp.
    return mutable_copy(op.fgraph) if any(node.op == op for node in graph.apply_nodes) else graph


class _InnerGraph(FunctionGraph):
    """A loop's body, so that the dispatch for loops walks it as we do."""

    def __init__(self, graph: FunctionGraph, walk: _Walk) -> None:
        graph = mutable_copy(graph)
        super().__init__(graph.inputs, graph.outputs, clone=True)
        self.walk = _Walk(None, walk.precision)


@lowers(_InnerGraph)
def inner_graph(graph: _InnerGraph, **_: Any) -> Callable[..., tuple[Any, ...]]:
    def body(*arguments: Any) -> tuple[Any, ...]:
        (values,) = _side_by_side([_walk(graph, arguments, graph.walk, outputs_in_full=True)], _refuse_to_reduce)
        settled = graph.walk.precision.settled  # what a loop carries keeps its dtype
        return tuple(settled(value, variable) for value, variable in zip(values, graph.outputs, strict=True))

    return body


def _described(node: Apply) -> str:
    """The variable, the op, and the line that built it."""
    variable = node.outputs[0]
    name = f"{variable.name} = " if variable.name else ""
    return f"{name}{node.op}{_built_at(node)}"


def _built_at(node: Apply) -> str:
    for variable in node.outputs:
        for trace in getattr(variable.tag, "trace", None) or ():
            for frame in reversed(trace):
                filename, line, _, text = tuple(frame)[:4]
                if "/pytensor/" not in filename and "/theano_mgpu/" not in filename:
                    return f" (built at {filename}:{line}{f': {text}' if text else ''})"
    return ""


def _typed(value: Any) -> str:
    return f"{value.dtype}{tuple(value.shape)}" if hasattr(value, "dtype") else str(value)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
