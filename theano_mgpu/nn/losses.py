"""Softmax cross-entropy: one op for the loss of each example, one for its gradient, finite for large logits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply
from pytensor.tensor.special import softmax
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from theano_mgpu.compatibility import OpWithShapes

__all__ = [
    "SoftmaxCrossEntropy",
    "SoftmaxCrossEntropyGradient",
    "check_lengths",
    "check_logits_and_labels",
    "labels_message",
    "softmax_cross_entropy",
]


class CrossEntropy(OpWithShapes):
    """What the loss and its gradient share."""

    __props__ = ("label_smoothing",)

    def __init__(self, label_smoothing: float) -> None:
        self.label_smoothing = label_smoothing

    def _targets(self, labels: np.ndarray, classes: int, dtype: Any) -> np.ndarray:
        targets = np.full((labels.shape[0], classes), self.label_smoothing / classes, dtype)
        targets[np.arange(labels.shape[0]), labels] += 1 - self.label_smoothing
        return targets


class SoftmaxCrossEntropy(CrossEntropy):
    """Logits (examples, classes) and labels (examples,) to losses (examples,)."""

    def make_node(self, logits: Any, labels: Any) -> Apply:
        logits, labels = check_logits_and_labels("softmax_cross_entropy", logits, labels)
        examples = logits.type.shape[0] if logits.type.shape[0] is not None else labels.type.shape[0]
        return Apply(self, [logits, labels], [TensorType(logits.type.dtype, shape=(examples,))()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[Any]]) -> None:
        logits, labels = inputs
        _check_values(logits, labels)
        shifted = _shifted(logits)
        losses = np.log(np.exp(shifted).sum(1))
        losses -= (1 - self.label_smoothing) * shifted[np.arange(labels.shape[0]), labels]
        # Not multiplied by zero: a masked class has the logit -inf.
        if self.label_smoothing:
            losses -= self.label_smoothing * shifted.mean(1)
        output_storage[0][0] = losses.astype(logits.dtype)

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        return [(input_shapes[0][0],)]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[True], [False]]

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        (g,) = cotangents
        if isinstance(g.type, DisconnectedType):
            return [g, g]
        return [SoftmaxCrossEntropyGradient(self.label_smoothing)(*inputs, g), DisconnectedType()()]


class SoftmaxCrossEntropyGradient(CrossEntropy):
    """Logits, labels and the cotangent of the losses to ``(softmax(logits) - targets) * cotangent``."""

    def make_node(self, logits: Any, labels: Any, g: Any) -> Apply:
        logits, labels = check_logits_and_labels("softmax_cross_entropy", logits, labels)
        g = pt.as_tensor_variable(g)
        if g.type.ndim != 1 or g.type.dtype != logits.type.dtype:
            raise TypeError(
                f"SoftmaxCrossEntropyGradient: the cotangent has type {g.type}; expected a {logits.type.dtype} vector."
            )
        return Apply(self, [logits, labels, g], [logits.type()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[Any]]) -> None:
        logits, labels, g = inputs
        _check_values(logits, labels)
        exponentials = np.exp(_shifted(logits))
        probabilities = exponentials / exponentials.sum(1, keepdims=True)
        targets = self._targets(labels, logits.shape[1], probabilities.dtype)
        output_storage[0][0] = ((probabilities - targets) * g[:, None]).astype(logits.dtype)

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        return [input_shapes[0]]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[True], [False], [True]]

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        logits, labels, g = inputs
        (u,) = cotangents
        if isinstance(u.type, DisconnectedType):
            return [u, u, u]
        probabilities = softmax(logits, axis=1)
        centred = u - (u * probabilities).sum(axis=1, keepdims=True)
        by_cotangent = (u * self(logits, labels, pt.ones_like(g))).sum(axis=1)
        return [probabilities * centred * g[:, None], DisconnectedType()(), by_cotangent]


def softmax_cross_entropy(logits: Any, labels: Any, label_smoothing: float = 0.0) -> TensorVariable:
    """Softmax cross-entropy: one loss per example.

    loss[n] := -sum over c of target[n, c] * log(softmax(logits[n]))[c]
    target  := (1 - label_smoothing) * one_hot(labels) + label_smoothing / classes

    Parameters:
        logits: (examples, classes), float16, float32 or float64. May be large: nothing overflows.
        labels: (examples,), integers from 0 to classes - 1.
        label_smoothing: between 0 and 1.

    Returns (examples,) of the logits' dtype; ``.mean()`` is the usual loss.
    Raises TypeError for dtypes and ValueError for shapes that do not fit, and at the call for a label out of range.

    Szegedy et al., "Rethinking the Inception architecture for computer vision", CVPR 2016, section 7.
    """
    if not 0 <= label_smoothing <= 1:
        raise ValueError(
            f"softmax_cross_entropy(): label_smoothing lies between 0 and 1; it came as {label_smoothing!r}."
        )
    return SoftmaxCrossEntropy(float(label_smoothing))(logits, labels)


def check_logits_and_labels(function: str, logits: Any, labels: Any) -> tuple[TensorVariable, TensorVariable]:
    """Both as variables, after checking axes, dtypes and what is known of the shapes."""
    logits, labels = pt.as_tensor_variable(logits), pt.as_tensor_variable(labels)
    if not logits.type.dtype.startswith("float"):
        raise TypeError(
            f'{function}(): logits have dtype {logits.type.dtype}; expected a float. Convert with .astype("float32").'
        )
    if not labels.type.dtype.startswith(("int", "uint")):
        raise TypeError(
            f"{function}(): labels have dtype {labels.type.dtype}; expected integers, one class number per example. "
            'Convert with .astype("int32").'
        )
    if logits.type.ndim != 2 or labels.type.ndim != 1:
        raise ValueError(
            f"{function}(): expected logits (examples, classes) and labels (examples,); "
            f"came logits {logits.type.shape} and labels {labels.type.shape}."
        )
    check_lengths(function, logits.type.shape, labels.type.shape)
    return logits, labels


def labels_message(classes: int) -> str:
    """The error for labels out of range, to be formatted with the lowest and the highest that came."""
    return (
        f"softmax_cross_entropy(): labels go from 0 to {classes - 1}, as logits have {classes} classes; "
        "came labels from {low} to {high}."
    )


def check_lengths(function: str, logits: Sequence[int | None], labels: Sequence[int | None]) -> None:
    if None not in (logits[0], labels[0]) and logits[0] != labels[0]:
        raise ValueError(
            f"{function}(): logits {tuple(logits)} and labels {tuple(labels)} have different numbers of examples."
        )


def _check_values(logits: np.ndarray, labels: np.ndarray) -> None:
    check_lengths("softmax_cross_entropy", logits.shape, labels.shape)
    if labels.size and not (labels.min() >= 0 and labels.max() < logits.shape[1]):
        raise ValueError(labels_message(logits.shape[1]).format(low=labels.min(), high=labels.max()))


def _shifted(logits: np.ndarray) -> np.ndarray:
    """The logits less the largest of each example, so that no exponential overflows."""
    wide = logits.astype(np.float32) if logits.dtype == np.float16 else logits
    return wide - wide.max(1, keepdims=True)
