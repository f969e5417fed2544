"""Batch normalisation: one op for the result and the statistics, one for the gradient."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply, Variable
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from theano_mgpu.averages import average
from theano_mgpu.compatibility import OpWithShapes

__all__ = ["BatchNorm", "BatchNormGradient", "batch_norm", "check_shapes"]


class BatchNorm(OpWithShapes):
    """x, gamma, beta to the normalised x and its mean and biased variance per channel."""

    __props__ = ("eps",)

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def make_node(self, x: Any, gamma: Any, beta: Any) -> Apply:
        x, gamma, beta = _checked(x, gamma, beta)
        channels = next((v.type.shape[-1] for v in (x, gamma, beta) if v.type.shape[-1] is not None), None)
        statistics = TensorType(gamma.type.dtype, shape=(channels,))
        y = TensorType(x.type.dtype, shape=(*x.type.shape[:-1], channels))
        return Apply(self, [x, gamma, beta], [y(), statistics(), statistics()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[Any]]) -> None:
        x, gamma, beta = inputs
        check_shapes(x.shape, gamma.shape, beta.shape)
        wide = _wide(x)
        axes = tuple(range(x.ndim - 1))
        # NumPy adds rows one by one: in single precision a thousand of them cost three digits.
        mean = wide.mean(axes, dtype=np.float64).astype(wide.dtype)
        centred = wide - mean
        var = np.square(centred).mean(axes, dtype=np.float64).astype(wide.dtype)
        y = centred * (gamma / np.sqrt(var + self.eps)) + beta
        for cell, value, variable in zip(output_storage, (y, mean, var), node.outputs, strict=True):
            cell[0] = value.astype(variable.type.dtype)

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        x, _, _ = input_shapes
        return [x, (x[-1],), (x[-1],)]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[True, True, True], [True, False, False], [True, False, False]]

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        x, gamma, _ = inputs
        _, mean, var = outputs
        g, g_mean, g_var = cotangents
        if isinstance(g.type, DisconnectedType):
            gradients = [x.zeros_like(), DisconnectedType()(), DisconnectedType()()]
        else:
            gradients = list(BatchNormGradient(self.eps)(x, gamma, mean, var, g))
        count = pt.prod(x.shape[:-1]).astype(gamma.dtype)
        if not isinstance(g_mean.type, DisconnectedType):
            gradients[0] += (g_mean / count).astype(x.dtype)
        if not isinstance(g_var.type, DisconnectedType):
            gradients[0] += ((x - mean) * (2 * g_var / count)).astype(x.dtype)
        return gradients


class BatchNormGradient(OpWithShapes):
    """x, gamma, the statistics and the cotangent of y to the gradients of x, gamma and beta.

    With n values per channel, x_hat := (x - mean) / sqrt(var + eps), and sums per channel:

    beta'  := sum(g)
    gamma' := sum(g * x_hat)
    x'     := gamma / sqrt(var + eps) * (g - beta' / n - x_hat * gamma' / n)
    """

    __props__ = ("eps",)

    def __init__(self, eps: float) -> None:
        self.eps = eps

    def make_node(self, x: Any, gamma: Any, mean: Any, var: Any, g: Any) -> Apply:
        inputs = [pt.as_tensor_variable(variable) for variable in (x, gamma, mean, var, g)]
        x, gamma, *_, g = inputs
        if g.type.ndim != x.type.ndim or g.type.dtype != x.type.dtype:
            raise TypeError(f"BatchNormGradient: the cotangent has type {g.type}; expected that of x, {x.type}.")
        return Apply(self, inputs, [x.type(), gamma.type(), gamma.type()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[Any]]) -> None:
        x, gamma, mean, var, g = inputs
        wide, wide_g = _wide(x), _wide(g)
        axes = tuple(range(x.ndim - 1))
        count = x.size // x.shape[-1]
        inverse = 1 / np.sqrt(_wide(var) + self.eps)
        normalised = (wide - mean) * inverse
        beta_gradient = wide_g.sum(axes, dtype=np.float64).astype(wide.dtype)
        gamma_gradient = (wide_g * normalised).sum(axes, dtype=np.float64).astype(wide.dtype)
        x_gradient = gamma * inverse * (wide_g - beta_gradient / count - normalised * (gamma_gradient / count))
        for cell, value, variable in zip(
            output_storage, (x_gradient, gamma_gradient, beta_gradient), node.outputs, strict=True
        ):
            cell[0] = value.astype(variable.type.dtype)

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        return [input_shapes[0], input_shapes[1], input_shapes[1]]

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        connected = [
            (expression, u)
            for expression, u in zip(self._expressions(*inputs), cotangents, strict=True)
            if not isinstance(u.type, DisconnectedType)
        ]
        if not connected:
            return [DisconnectedType()() for _ in inputs]
        # Second derivatives are rare: PyTensor takes them, of the formula above.
        return pytensor.grad(
            None, inputs, known_grads=dict(connected), consider_constant=inputs, disconnected_inputs="ignore"
        )

    def _expressions(self, x: Any, gamma: Any, mean: Any, var: Any, g: Any) -> tuple[Variable, Variable, Variable]:
        axes = tuple(range(x.type.ndim - 1))
        count = pt.prod(x.shape[:-1]).astype(gamma.dtype)
        inverse = 1 / pt.sqrt(var + np.asarray(self.eps, gamma.dtype))
        normalised = (x - mean) * inverse
        beta_gradient = g.astype(gamma.dtype).sum(axis=axes)
        gamma_gradient = (g * normalised).sum(axis=axes)
        x_gradient = gamma * inverse * (g - beta_gradient / count - normalised * (gamma_gradient / count))
        # Copies: x_gradient depends on both, and a known gradient would stand for that way too.
        return x_gradient.astype(x.dtype), gamma_gradient.copy(), beta_gradient.copy()


def batch_norm(
    x: Any, gamma: Any, beta: Any, eps: float = 1e-5, sync: bool = False
) -> tuple[TensorVariable, TensorVariable, TensorVariable]:
    """Batch normalisation with the statistics of the batch, over all axes but the last.

    y := (x - mean) / sqrt(var + eps) * gamma + beta

    Parameters:
        x: (..., channels) with at least two axes, float16, float32 or float64.
        gamma, beta: (channels,), of x's dtype, or float32 where x is float16.
        eps: added to the variance.
        sync: take the statistics over all shards of the batch, not over each shard by itself.

    Returns y, of x's shape and dtype, and mean and biased variance (channels,) of gamma's dtype.
    Raises TypeError for dtypes and ValueError for shapes that do not fit, or where x is empty.

    Ioffe and Szegedy, "Batch normalization: accelerating deep network training by reducing internal covariate shift",
    ICML 2015, algorithm 1.
    """
    if not eps >= 0:
        raise ValueError(f"batch_norm(): eps is a number of at least 0; it came as {eps!r}.")
    if not sync:
        y, mean, var = BatchNorm(float(eps))(x, gamma, beta)
        return y, mean, var
    x, gamma, beta = _checked(x, gamma, beta)
    axes = tuple(range(x.type.ndim - 1))
    wide = x.astype("float32") if x.type.dtype == "float16" else x
    # The mean first, so that the variance does not come out of the difference of two large numbers.
    mean = average(wide.mean(axis=axes))
    centred = wide - mean
    var = average(pt.square(centred).mean(axis=axes))
    y = centred * (gamma / pt.sqrt(var + np.asarray(eps, wide.dtype))) + beta
    return y.astype(x.dtype), mean.astype(gamma.dtype), var.astype(gamma.dtype)


def _checked(x: Any, gamma: Any, beta: Any) -> tuple[TensorVariable, TensorVariable, TensorVariable]:
    x, gamma, beta = (pt.as_tensor_variable(variable) for variable in (x, gamma, beta))
    if x.type.ndim < 2 or gamma.type.ndim != 1 or beta.type.ndim != 1:
        raise ValueError(
            "batch_norm(): expected x (..., channels) with at least 2 axes, gamma and beta (channels,); "
            f"came x {x.type.shape}, gamma {gamma.type.shape}, beta {beta.type.shape}."
        )
    dtypes = {"x": x.type.dtype, "gamma": gamma.type.dtype, "beta": beta.type.dtype}
    if not dtypes["x"].startswith("float"):
        raise TypeError(
            f'batch_norm(): x has dtype {dtypes["x"]}; expected a float. Convert it with x.astype("float32").'
        )
    allowed = {dtypes["x"], "float32"} if dtypes["x"] == "float16" else {dtypes["x"]}
    if dtypes["gamma"] not in allowed or dtypes["beta"] != dtypes["gamma"]:
        raise TypeError(
            f"batch_norm(): x, gamma and beta need the same float dtype; they have {dtypes}. "
            f'Convert with .astype("{dtypes["x"]}").'
        )
    check_shapes(x.type.shape, gamma.type.shape, beta.type.shape)
    return x, gamma, beta


def check_shapes(x: Sequence[int | None], gamma: Sequence[int | None], beta: Sequence[int | None]) -> None:
    if len({length for length in (x[-1], gamma[0], beta[0]) if length is not None}) > 1:
        raise ValueError(
            f"batch_norm(): x has shape {tuple(x)}, so gamma and beta need shape ({x[-1]},); "
            f"they have {tuple(gamma)} and {tuple(beta)}."
        )
    if 0 in x:
        raise ValueError(f"batch_norm(): x has shape {tuple(x)}: there is nothing to take statistics of.")


def _wide(array: np.ndarray) -> np.ndarray:
    """Half precision is stored, not computed with."""
    return array.astype(np.float32) if array.dtype == np.float16 else array
