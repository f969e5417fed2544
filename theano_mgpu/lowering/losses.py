"""Softmax cross-entropy on a device."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from theano_mgpu.lowering.dispatch import lowers, require
from theano_mgpu.nn.losses import SoftmaxCrossEntropy, SoftmaxCrossEntropyGradient, check_lengths, labels_message

__all__: list[str] = []


@lowers(SoftmaxCrossEntropy)
def softmax_cross_entropy(op: SoftmaxCrossEntropy, node: Any, **_: Any) -> Callable[..., jax.Array]:
    smoothing = op.label_smoothing

    def loss(logits: jax.Array, labels: jax.Array) -> jax.Array:
        labels, known = _known_labels(logits, labels)
        shifted = _shifted(logits)
        own = jnp.take_along_axis(shifted, _index(labels, logits.shape[1]), axis=1)[:, 0]
        losses = jnp.log(jnp.exp(shifted).sum(1)) - (1 - smoothing) * own
        if smoothing:
            losses -= smoothing * shifted.mean(1)
        return jnp.where(known, losses, jnp.nan).astype(logits.dtype)

    return loss


@lowers(SoftmaxCrossEntropyGradient)
def softmax_cross_entropy_gradient(op: SoftmaxCrossEntropyGradient, node: Any, **_: Any) -> Callable[..., jax.Array]:
    smoothing = op.label_smoothing

    def gradient(logits: jax.Array, labels: jax.Array, g: jax.Array) -> jax.Array:
        labels, known = _known_labels(logits, labels)
        classes = logits.shape[1]
        shifted = _shifted(logits)
        exponentials = jnp.exp(shifted)
        probabilities = exponentials / exponentials.sum(1, keepdims=True)
        is_label = jnp.arange(classes, dtype=jnp.int32) == _index(labels, classes)
        targets = jnp.where(is_label, 1 - smoothing, 0).astype(shifted.dtype) + smoothing / classes
        gradients = (probabilities - targets) * g[:, None].astype(shifted.dtype)
        return jnp.where(known[:, None], gradients, jnp.nan).astype(logits.dtype)

    return gradient


def _known_labels(logits: jax.Array, labels: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The labels, and which are classes; a step with one that is not raises, and inside a loop its loss is NaN."""
    check_lengths("softmax_cross_entropy", logits.shape, labels.shape)
    if labels.dtype.itemsize < 4:
        labels = labels.astype(jnp.int32)  # 1000 classes are more than int8 can be compared with
    known = (labels >= 0) & (labels < logits.shape[1])
    if labels.size:
        message = labels_message(logits.shape[1])
        require(known.all(), ValueError, message, low=labels.min(), high=labels.max())
    return labels, known


def _index(labels: jax.Array, classes: int) -> jax.Array:
    """(examples, 1), within the classes."""
    return jnp.clip(labels, 0, classes - 1).astype(jnp.int32)[:, None]


def _shifted(logits: jax.Array) -> jax.Array:
    """The logits less the largest of each example, so that no exponential overflows."""
    wide = logits.astype(jnp.promote_types(logits.dtype, jnp.float32))
    return wide - wide.max(1, keepdims=True)
