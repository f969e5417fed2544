"""Targets that give each class a part, and the loss of as many yes-or-no questions as there are classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.raise_op import CheckAndRaise
from pytensor.tensor.variable import TensorVariable

__all__ = ["binary_cross_entropy", "one_hot"]


def one_hot(labels: Any, num_classes: int, label_smoothing: float = 0.0) -> TensorVariable:
    """Labels as targets: ``(1 - label_smoothing) * one_hot + label_smoothing / num_classes``.

    Parameters: labels (examples,), integers from 0 to num_classes - 1; label_smoothing between 0 and 1.

    Returns float32 (examples, num_classes), each row adding up to 1.
    Raises TypeError for the labels' dtype, ValueError for other axes, numbers of classes or smoothing, and at the call
    for a label out of range.
    """
    labels = pt.as_tensor_variable(labels)
    if not labels.type.dtype.startswith(("int", "uint")):
        raise TypeError(f"one_hot(): labels have dtype {labels.type.dtype}; expected integers.")
    if labels.type.ndim != 1:
        raise ValueError(f"one_hot(): labels have shape {labels.type.shape}; expected (examples,).")
    if isinstance(num_classes, bool) or not isinstance(num_classes, (int, np.integer)) or num_classes < 1:
        raise ValueError(f"one_hot(): num_classes is an int of at least 1; it came as {num_classes!r}.")
    if not 0 <= label_smoothing <= 1:
        raise ValueError(f"one_hot(): label_smoothing lies between 0 and 1; it came as {label_smoothing!r}.")
    in_range = CheckAndRaise(ValueError, f"one_hot(): labels go from 0 to {num_classes - 1}; one is out of range.")
    labels = in_range(labels, pt.all((labels >= 0) & (labels < num_classes)))
    off = np.float32(label_smoothing / num_classes)
    on = np.float32(1 - label_smoothing + label_smoothing / num_classes)
    return pt.switch(pt.eq(labels[:, None], np.arange(num_classes, dtype="int32")[None, :]), on, off)


def binary_cross_entropy(logits: Any, targets: Any) -> TensorVariable:
    """Cross-entropy of every class by itself, the mean over classes: one loss per example.

    loss[n] := -mean over c of (t * log(sigmoid(z)) + (1 - t) * log(1 - sigmoid(z)))
    with t = targets[n, c] and z = logits[n, c]

    Parameters:
        logits: (examples, classes), a float dtype. May be large: nothing overflows.
        targets: (examples, classes), floats from 0 to 1, as from ``one_hot`` or ``Mixed.targets``.

    Returns (examples,) of the logits' dtype; ``.mean()`` is PyTorch's ``binary_cross_entropy_with_logits``.
    Raises TypeError for dtypes, ValueError for shapes that do not fit.

    Wightman et al., "ResNet strikes back", 2021, section 3.2, has it for ImageNet.
    """
    logits, targets = pt.as_tensor_variable(logits), pt.as_tensor_variable(targets)
    for name, value in (("logits", logits), ("targets", targets)):
        if not value.type.dtype.startswith("float"):
            raise TypeError(
                f"binary_cross_entropy(): {name} have dtype {value.type.dtype}; expected a float. "
                "tm.nn.one_hot(labels, num_classes) makes targets of labels."
            )
    known = zip(logits.type.shape, targets.type.shape, strict=False)
    differ = any(None not in sizes and sizes[0] != sizes[1] for sizes in known)
    if logits.type.ndim != 2 or targets.type.ndim != 2 or differ:
        raise ValueError(
            f"binary_cross_entropy(): logits and targets are both (examples, classes); came "
            f"{logits.type.shape} and {targets.type.shape}."
        )
    targets = targets.astype(logits.type.dtype)
    one = np.ones((), logits.type.dtype)
    # -log(sigmoid(z)) = softplus(-z): exact where z is large, in value and gradient.
    losses = targets * pt.softplus(-logits) + (one - targets) * pt.softplus(logits)
    return losses.mean(axis=1, dtype=logits.type.dtype)
