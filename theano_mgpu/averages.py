"""``average``, ``total``, ``maximum``, ``minimum`` and ``grad``: where the graph is cut.

A batch is split into shards; everything below an average is computed once per shard, everything above it once per
batch. In a plain ``pytensor.function`` there is one shard, so each of these ops is the identity and the same graph
runs, and can be checked, on one device with stock PyTensor.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
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

    def of_one_shard(self, x: Variable) -> Variable:
        """What the average is where every shard has the same ``x``."""
        return x


class GradientAverage(Average):
    """The average that ``grad`` makes: of a gradient of the scaled loss, divided by the loss scale."""

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Variable]:
        (gradient,) = super().pullback(inputs, outputs, cotangents)
        return [gradient if isinstance(gradient.type, DisconnectedType) else _unscaled(gradient)]

    def of_one_shard(self, x: Variable) -> Variable:
        return _unscaled(x)


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


class LossScale(OpWithShapes):
    """What ``grad`` multiplies the loss by, so that float16 holds its gradients; 1 in any other precision.

    ``lower`` marks the graphs that have one, ``has_loss_scale``; in all others the constant 1 is folded away.
    """

    __props__ = ()

    def make_node(self) -> Apply:
        return Apply(self, [], [TensorType("float32", shape=())()])

    def perform(self, node: Apply, inputs: Sequence[Any], output_storage: list[list[Any]]) -> None:
        output_storage[0][0] = np.asarray(1.0, "float32")

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        return [()]

    def do_constant_folding(self, fgraph: Any, node: Apply) -> bool:
        return not getattr(fgraph, "has_loss_scale", False)


def _unscaled(gradient: TensorVariable) -> TensorVariable:
    return gradient / LossScale()().astype(gradient.dtype)


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
    go to ``pytensor.grad``. Returns averages in the form of ``wrt``. With ``precision="float16"`` the loss, and what
    ``known_grads`` gives, is multiplied by the step's loss scale on its way back, and the averages are divided by it.
    """
    gradients = pytensor.grad(loss, wrt, **{**options, "known_grads": _scaled_seeds(loss, options.get("known_grads"))})
    if isinstance(gradients, (list, tuple)):
        return type(gradients)(_averaged(g, w, loss) for g, w in zip(gradients, wrt, strict=True))
    return _averaged(gradients, wrt, loss)


def _scaled_seeds(loss: Any, known: Mapping[Variable, Any] | None) -> dict[Variable, Any] | None:
    """Where the backward pass begins: the loss scale at the loss, and times what is known elsewhere."""
    seeds = {v: g * LossScale()().astype(g.dtype) if _is_float(g) else g for v, g in (known or {}).items()}
    if _is_float(loss) and loss not in seeds:
        seeds[loss] = LossScale()().astype(loss.dtype)
    return seeds or None  # what is wrong with a loss that is no float, PyTensor will say


def _is_float(variable: Any) -> bool:
    return str(getattr(getattr(variable, "type", None), "dtype", "")).startswith("float")


def _averaged(gradient: TensorVariable, wrt: TensorVariable, loss: TensorVariable) -> TensorVariable:
    averaged = GradientAverage()(gradient)
    averaged.name = f"d{loss.name or 'loss'}/d{wrt.name}" if wrt.name else None
    return averaged
