"""``average``, ``total``, ``maximum``, ``minimum`` and ``grad``: where the graph is cut.

A batch is split into shards; everything below an average is computed once per shard, everything above it once per
batch. In a plain ``pytensor.function`` there is one shard, so each of these ops is the identity and the same graph
runs, and can be checked, on one device with stock PyTensor.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.ops import TypeCastingOp
from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from theano_mgpu.compatibility import OpWithShapes

__all__ = ["average", "grad", "maximum", "minimum", "total"]


class ShardReduction(TypeCastingOp, OpWithShapes):
    """One value per shard to one value per batch; the identity where there is one shard."""

    __props__ = ()
    #: What it gives of the shards' values, in a word.
    kind: str

    def make_node(self, x: Any) -> Apply:
        x = pt.as_tensor_variable(x)
        return Apply(self, [x], [x.type()])

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        return input_shapes

    def do_constant_folding(self, fgraph: Any, node: Apply) -> bool:
        return False


class Average(ShardReduction):
    """The mean over all shards, each weighted by its number of examples: the mean over the batch."""

    kind = "average"

    def make_node(self, x: Any) -> Apply:
        x = pt.as_tensor_variable(x)
        if x.dtype.startswith(("int", "uint", "bool")):
            x = x.astype("float64")
        return super().make_node(x)

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Variable]:
        # Shard j's share of d(sum_i w_i l_i)/dx_j, the weight w_j being applied by the average around the gradient.
        (g,) = cotangents
        return [g if isinstance(g.type, DisconnectedType) else average(g)]


class Total(ShardReduction):
    """The sum over all shards."""

    kind = "total"

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Variable]:
        (g,) = cotangents
        if isinstance(g.type, DisconnectedType):
            return [g]
        # The average around the gradient multiplies by the shard's weight; a sum has none.
        return [average(g) / shard_weight().astype(g.dtype)]


class Extremum(ShardReduction):
    """The largest or smallest over all shards. The gradient goes to every shard that has it, as in ``pt.max``."""

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Variable]:
        (g,) = cotangents
        if isinstance(g.type, DisconnectedType):
            return [g]
        through_total = average(g) / shard_weight().astype(g.dtype)
        return [through_total * pt.eq(inputs[0], outputs[0]).astype(g.dtype)]


class Maximum(Extremum):
    """The largest over all shards."""

    kind = "maximum"


class Minimum(Extremum):
    """The smallest over all shards."""

    kind = "minimum"


class ShardWeight(OpWithShapes):
    """The shard's part of the batch: its number of examples over the batch's; 1 where there is one shard."""

    __props__ = ()

    def make_node(self) -> Apply:
        return Apply(self, [], [TensorType("float64", shape=())()])

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: list[list[Any]]) -> None:
        output_storage[0][0] = np.asarray(1.0)

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        return [()]

    def do_constant_folding(self, fgraph: Any, node: Apply) -> bool:
        return False


def shard_weight() -> TensorVariable:
    return ShardWeight()()


def average(x: Any) -> TensorVariable:
    """The mean of ``x`` over all shards of the batch.

    Shards are weighted by their number of examples, so that ``average(per_example.mean())`` is the mean over the whole
    batch even where it does not divide evenly. Any shape; integers become float64. In a plain ``pytensor.function``
    it is the identity. Its pullback is itself.
    """
    return Average()(x)


def total(x: Any) -> TensorVariable:
    """The sum of ``x`` over all shards of the batch: ``total(correct.sum())`` counts over the whole batch.

    Any shape and dtype. In a plain ``pytensor.function`` it is the identity.
    """
    return Total()(x)


def maximum(x: Any) -> TensorVariable:
    """The largest of ``x`` over all shards of the batch, entry by entry; NaN where a shard has one.

    ``maximum(per_example.max())`` is the largest over the whole batch. Any shape and dtype. In a plain
    ``pytensor.function`` it is the identity.
    """
    return Maximum()(x)


def minimum(x: Any) -> TensorVariable:
    """The smallest of ``x`` over all shards of the batch, entry by entry; else as ``maximum``."""
    return Minimum()(x)


def grad(loss: TensorVariable, wrt: Any, **options: Any) -> Any:
    """``pytensor.grad`` with every result averaged over the shards: the gradient of the whole batch's mean loss.

    ``loss`` is a scalar, the mean over the examples at hand. ``wrt`` is a variable or a sequence of them; ``options``
    go to ``pytensor.grad``. Returns averages in the form of ``wrt``.
    """
    gradients = pytensor.grad(loss, wrt, **options)
    if isinstance(gradients, (list, tuple)):
        return type(gradients)(_averaged(g, w, loss) for g, w in zip(gradients, wrt, strict=True))
    return _averaged(gradients, wrt, loss)


def _averaged(gradient: TensorVariable, wrt: TensorVariable, loss: TensorVariable) -> TensorVariable:
    averaged = average(gradient)
    averaged.name = f"d{loss.name or 'loss'}/d{wrt.name}" if wrt.name else None
    return averaged
