"""In which precision the part below the cut is computed: what the graph declares float32 may be narrower, or wider.

With ``"bfloat16"`` and ``"float16"``, as with PyTorch's autocast, products and convolutions take 16-bit operands, add
up in float32 and give 16 bits, which a short list of ops passes on; any other op has its operands widened. With
``"float64"`` everything is computed in double precision.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp
import pytensor.scalar as ps
from pytensor.graph.basic import Apply, Variable
from pytensor.graph.fg import FunctionGraph, Output
from pytensor.graph.op import Op
from pytensor.tensor import subtensor
from pytensor.tensor.basic import Alloc, Join, MakeVector, Split
from pytensor.tensor.blas import BatchedDot
from pytensor.tensor.blockwise import Blockwise
from pytensor.tensor.elemwise import CAReduce, DimShuffle, Elemwise
from pytensor.tensor.math import Dot
from pytensor.tensor.random.op import RandomVariable
from pytensor.tensor.shape import Reshape, SpecifyShape

from theano_mgpu.averages import ShardReduction
from theano_mgpu.nn.convolution import Conv2d, Conv2dFilterGradient, Conv2dInputGradient
from theano_mgpu.nn.normalisation import BatchNorm, BatchNormGradient
from theano_mgpu.nn.pooling import AveragePool2d, AveragePool2dGradient, MaxPool2d, MaxPool2dGradient, MaxPool2dPick
from theano_mgpu.recomputation import After

__all__ = ["FLOAT32", "Precision", "named_precision"]

_MATRIX_PRODUCTS = (Dot, BatchedDot)
_CONVOLUTIONS = (Conv2d, Conv2dInputGradient, Conv2dFilterGradient)
# Values pass unchanged.
_MOVES = (Alloc, DimShuffle, Join, Reshape, SpecifyShape, Split, subtensor.Subtensor, subtensor.AdvancedSubtensor)
_MOVES += tuple(getattr(subtensor, name) for name in ("AdvancedSubtensor1",) if hasattr(subtensor, name))
# One rounding of a result no larger than its operands; neither powers, which overflow, nor exponentials are among them.
_ELEMENTWISE = (
    *(ps.Add, ps.Sub, ps.Mul, ps.TrueDiv, ps.Neg, ps.Abs, ps.Sign, ps.ScalarMaximum, ps.ScalarMinimum, ps.Clip),
    *(ps.Switch, ps.Second, ps.Identity, ps.Cast, ps.LT, ps.GT, ps.LE, ps.GE, ps.EQ, ps.NEQ, ps.IsNan, ps.IsInf),
)
# Their lowerings take these operands in either width, compute in float32, and give the dtype of the first.
_LIKE_FIRST: dict[type[Op], tuple[int, ...]] = {
    After: (0,),
    BatchNorm: (0,),
    BatchNormGradient: (0, 4),
    MaxPool2d: (0,),
    MaxPool2dGradient: (0, 1, 2),
    MaxPool2dPick: (0, 1, 2),
    AveragePool2d: (0,),
    AveragePool2dGradient: (0, 1),
}


@dataclass(frozen=True)
class Precision:
    """What becomes of values that the graph declares float32.

    ``narrow``: the dtype of products' operands, in which other ops pass values on; None for none. ``single``: the dtype
    of all other values. ``is_scaled``: whether gradients need a loss scale to be held.
    """

    name: str
    narrow: Any = None
    single: Any = jnp.float32
    is_scaled: bool = False

    def settled(self, value: Any, variable: Variable) -> Any:
        """The value in the dtype that the graph declares, or in ``single``, whatever a lowering made of it."""
        dtype = self.single if _is_single(variable) else getattr(variable.type, "dtype", None)
        return value.astype(dtype) if dtype is not None and _is_array(value) and value.dtype != dtype else value

    def operands(self, node: Apply, values: Sequence[Any], full: Container[Variable]) -> list[Any]:
        """The node's inputs in the dtypes that its op takes; ``full`` is what ``wanted_in_full`` gave."""
        if self is FLOAT32:
            return list(values)
        pairs = list(zip(values, node.inputs, strict=True))
        if isinstance(node.op, RandomVariable):  # a draw takes other bits for wider parameters
            return [FLOAT32.settled(*pair) for pair in pairs]
        if self.narrow is not None and _is_product(node.op):
            return [self._narrowed(*pair) for pair in pairs]
        if self._gives_narrow(node, values, full):
            as_they_are = _LIKE_FIRST.get(type(node.op), range(len(pairs)))
            return [pair[0] if i in as_they_are else self.settled(*pair) for i, pair in enumerate(pairs)]
        return [self.settled(*pair) for pair in pairs]

    def results(
        self, node: Apply, values: Sequence[Any], results: Iterable[Any], full: Container[Variable]
    ) -> list[Any]:
        """The node's outputs in the dtypes in which they go on; ``values`` are what ``operands`` was given."""
        narrow = self._gives_narrow(node, values, full)
        return [
            self._narrowed(value, variable)
            if narrow and i not in _statistics(node.op)
            else self.settled(value, variable)
            for i, (value, variable) in enumerate(zip(results, node.outputs, strict=True))
        ]

    def product_in_full(self, node: Apply) -> Callable[..., jax.Array] | None:
        """A matrix product whose sums leave it unrounded; None for another op."""
        if self.narrow is None or not isinstance(_core(node.op), _MATRIX_PRODUCTS):
            return None

        def product(x: jax.Array, y: jax.Array) -> jax.Array:
            if isinstance(node.op, Blockwise):
                node.op._check_runtime_broadcast(node, (x, y))
            full = jnp.promote_types(jnp.promote_types(x.dtype, y.dtype), jnp.float32)
            return jnp.matmul(x, y, preferred_element_type=full)

        return product

    def wanted_in_full(self, graph: FunctionGraph, *, outputs: bool) -> frozenset[Variable]:
        """Variables that only become outputs, averages or, by moves and arithmetic, one of these: gradients above all.

        With ``outputs`` the graph's outputs leave it in full.
        """
        if self.narrow is None:
            return frozenset()
        found: set[Variable] = set()
        for node in reversed(graph.toposort()):
            for variable in node.outputs:
                clients = [client for client, _ in graph.clients[variable]]
                if clients and all(
                    (outputs and isinstance(client.op, Output))
                    or isinstance(client.op, ShardReduction)
                    or (_passes(client.op) and found.issuperset(client.outputs))
                    for client in clients
                ):
                    found.add(variable)
        return frozenset(found)

    def retyped(self, op: Op) -> Op:
        """The op, without its own idea of how wide sums and vectors are where all is computed wider."""
        if self.single == jnp.float32:
            return op
        if isinstance(op, Elemwise) and isinstance(op.scalar_op, ps.Cast) and op.scalar_op.o_type.dtype == "float32":
            return Elemwise(ps.Cast(ps.float64))
        if isinstance(op, (CAReduce, MakeVector)):
            properties = op._props_dict()
            changed = {name: "float64" for name, value in properties.items() if str(value) == "float32"}
            return op.clone(**changed) if isinstance(op, CAReduce) else type(op)(**{**properties, **changed})
        return op

    def _gives_narrow(self, node: Apply, values: Sequence[Any], full: Container[Variable]) -> bool:
        op, output = node.op, node.outputs[0]
        if self.narrow is None or output in full or not _is_single(output):
            return False
        if _is_product(op):
            return True
        if type(op) in _LIKE_FIRST:
            return self._is_narrow(values[0])
        if not _passes(op):
            return False
        counted = list(zip(values, node.inputs, strict=True))
        if isinstance(op, Elemwise):
            # Of what is filled only the shape matters, and a condition has no precision.
            counted = counted[1:] if isinstance(op.scalar_op, (ps.Second, ps.Switch)) else counted
            # A bias does not make a layer's output float32; another array of its size does.
            counted = [(value, v) for value, v in counted if self._is_narrow(value) or _spans(v, output)]
            return bool(counted) and all(self._is_narrow(value) or v.type.dtype == "bool" for value, v in counted)
        counted = [(value, v) for value, v in counted if _is_single(v)]
        return bool(counted) and all(self._is_narrow(value) for value, _ in counted)

    def _is_narrow(self, value: Any) -> bool:
        return _is_array(value) and value.dtype == self.narrow

    def _narrowed(self, value: Any, variable: Variable) -> Any:
        if _is_single(variable) and _is_array(value):
            return value.astype(self.narrow)
        return self.settled(value, variable)


def _is_array(value: Any) -> bool:
    return isinstance(value, jax.Array)


def _is_single(variable: Variable) -> bool:
    return getattr(variable.type, "dtype", None) == "float32"


def _core(op: Op) -> Op:
    return op.core_op if isinstance(op, Blockwise) else op


def _is_product(op: Op) -> bool:
    return isinstance(_core(op), (*_MATRIX_PRODUCTS, *_CONVOLUTIONS))


def _passes(op: Op) -> bool:
    return isinstance(op, _MOVES) or (isinstance(op, Elemwise) and isinstance(op.scalar_op, _ELEMENTWISE))


def _statistics(op: Op) -> Sequence[int]:
    """The outputs that stay in full: mean and variance, the gradients of scale and shift."""
    return (1, 2) if isinstance(op, (BatchNorm, BatchNormGradient)) else ()


def _spans(operand: Variable, output: Variable) -> bool:
    """Whether an operand has all axes of the output, so that none of its values is used twice."""
    pairs = zip(operand.type.broadcastable, output.type.broadcastable, strict=True)
    return all(full or not repeated for repeated, full in pairs)


FLOAT32 = Precision("float32")
_KNOWN = {
    "float32": FLOAT32,
    "bfloat16": Precision("bfloat16", jnp.bfloat16),
    "float16": Precision("float16", jnp.float16, is_scaled=True),
    "float64": Precision("float64", single=jnp.float64),
}


def named_precision(name: str) -> Precision:
    """The precision of that name; ValueError listing the known ones."""
    if not isinstance(name, str) or name not in _KNOWN:
        raise ValueError(f"precision: expected one of {', '.join(map(repr, _KNOWN))}, got {name!r}.")
    return _KNOWN[name]
