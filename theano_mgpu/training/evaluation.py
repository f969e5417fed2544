"""Evaluation: every example counts once, whatever the batch and the devices."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np

from theano_mgpu.data import Examples, Pipeline

__all__ = ["evaluate"]


def evaluate(
    predict_step: Callable[..., Any], examples: Examples | Pipeline, batch_size: int | None = None
) -> dict[str, float]:
    """The mean loss, top-1 and top-5 of a network over all examples, each of them once.

    predict_step: ``tm.function([images], logits)``, of which the answers keep the batch axis, ``(n, classes)``; or any
        function of images that gives such logits, alone, in a list of one, or as "logits" in a dict.
    examples: what it is evaluated on, in order, in batches of ``batch_size``, the last of which may be smaller; or a
        pipeline for validation, ``tm.data.pipeline(..., train=False)``, which has its own batches.

    Returns "loss", the mean of ``-log softmax(logits)[label]``, "top1" and "top5", from 0 to 1, and "examples", their
    number. Sums are taken in float64 over single examples. An example is among the top k where fewer than k classes
    have a larger logit, or an equal one and a smaller number; one whose logits are not finite is wrong.

    Raises ValueError for no examples, and for logits of another form, or of fewer classes than the labels need.
    """
    if len(examples) == 0:
        raise ValueError("evaluate(): 'examples' is empty; at least one is needed.")
    sums, count = np.zeros(3), 0
    for images, labels in _batches(examples, batch_size):
        sums += _sums(_logits(predict_step(images), labels), labels)
        count += len(labels)
    loss, top1, top5 = (float(total) / count for total in sums)
    return {"loss": loss, "top1": top1, "top5": top5, "examples": count}


def _batches(examples: Examples | Pipeline, batch_size: int | None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if isinstance(examples, Pipeline):
        if batch_size is not None:
            raise ValueError("evaluate(): 'batch_size' belongs to the pipeline that is given; leave it out here.")
        return examples.batches()
    if batch_size is None:
        raise ValueError("evaluate(): 'batch_size' is needed for examples in memory.")
    return examples.batches(batch_size)


def _sums(logits: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Of one batch: the sum of the losses, and the numbers of examples in the top 1 and the top 5."""
    rows = np.arange(len(labels))
    of_label = logits[rows, labels][:, None]
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(axis=1)) - shifted[rows, labels]
        earlier = np.arange(logits.shape[1]) < labels[:, None]
        place = ((logits > of_label) | ((logits == of_label) & earlier)).sum(axis=1)
    place[~np.isfinite(logits).all(axis=1)] = logits.shape[1] + 5
    return np.array([losses.sum(), (place < 1).sum(), (place < 5).sum()])


def _logits(outputs: Any, labels: np.ndarray) -> np.ndarray:
    """One row an example, float64."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits")
    if isinstance(outputs, (list, tuple)) and len(outputs) == 1:
        outputs = outputs[0]
    shape = np.shape(outputs) if isinstance(outputs, np.ndarray) else type(outputs).__name__
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 2 or len(outputs) != len(labels):
        raise ValueError(
            f"evaluate(): 'predict_step' should give logits of shape ({len(labels)}, classes), not {shape}. Return "
            "them without an average: tm.function([images], logits)."
        )
    if labels.min() < 0 or labels.max() >= outputs.shape[1]:
        raise ValueError(
            f"evaluate(): labels go from {labels.min()} to {labels.max()}, but there are logits of {outputs.shape[1]} "
            "classes. Labels count the classes from 0."
        )
    return outputs.astype("float64")
