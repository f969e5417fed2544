"""Metrics of a classifier."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

from theano_mgpu.nn.losses import check_logits_and_labels

__all__ = ["top_k_accuracy"]


def top_k_accuracy(logits: Any, labels: Any, k: int = 1) -> TensorVariable:
    """Whether the label is among the k largest logits: 1 or 0 per example, float32; ``.mean()`` is the accuracy.

    Parameters: logits (examples, classes), a float dtype; labels (examples,), integers; k at least 1.

    Fewer than k logits are larger than the label's, so ties count in its favour. A NaN logit counts as larger than any
    number; a label whose own logit is NaN, or that is no class, counts as wrong.
    Raises TypeError for dtypes, ValueError for shapes or k.
    """
    logits, labels = check_logits_and_labels("top_k_accuracy", logits, labels)
    if not isinstance(k, (int, np.integer)) or k < 1:
        raise ValueError(f"top_k_accuracy(): k is an int of at least 1; it came as {k!r}.")
    classes = pt.arange(logits.shape[1])
    is_label = pt.eq(classes[None, :], labels[:, None])
    own = pt.switch(is_label, logits, np.zeros((), dtype=logits.type.dtype)).sum(axis=1, keepdims=True)
    # `not <=` rather than `>`: true for NaN.
    above = pt.invert(logits <= own).sum(axis=1)
    known = pt.any(is_label & pt.eq(logits, logits), axis=1)
    return (pt.lt(above, k) & known).astype("float32")
