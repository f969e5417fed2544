"""Evaluation: every example counts once, whatever the batch and the devices."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, Protocol

import numpy as np

from theano_mgpu.cluster import Cluster, together
from theano_mgpu.data import Examples
from theano_mgpu.data.batches import Part
from theano_mgpu.step import Step
from theano_mgpu.training.examination import Examination

__all__ = ["OnceOver", "evaluate", "examine"]


class OnceOver(Protocol):
    """Data that makes its own batches of images and labels, once over: ``tm.data.pipeline(..., train=False)``.

    Its ``batches`` may take ``part``, as a ``BatchSource`` may; the parts of batches are cut out where it does not.
    """

    def __len__(self) -> int: ...

    def batches(self) -> Iterator[tuple[np.ndarray, np.ndarray]]: ...


def evaluate(
    predict_step: Callable[..., Any], examples: Examples | OnceOver, batch_size: int | None = None
) -> dict[str, float]:
    """The mean loss, top-1 and top-5 of a network over all examples, each of them once.

    predict_step: ``tm.function([images], logits)``, of which the answers keep the batch axis, ``(n, classes)``; or any
        function of images that gives such logits, alone, in a list of one, or as "logits" in a dict.
    examples: what it is evaluated on, in order: ``Examples`` in batches of ``batch_size``, of which the last may be
        smaller; or a pipeline for validation, which knows its own.

    Returns "loss", the mean of ``-log softmax(logits)[label]``, "top1" and "top5", from 0 to 1, and "examples", their
    number. Sums are taken in float64 over single examples. An example is among the top k where fewer than k classes
    have a larger logit, or an equal one and a smaller number; one whose logits are not finite is wrong.

    Under mpirun, of a step with ``split_over="ranks"``, each rank reads and answers its part of every batch. All get
    the result, to the bit that of one process, for sums go over all examples in their order.

    Raises ValueError for no examples, and for logits of another form, or of fewer classes than the labels need.
    """
    sums, count = np.zeros(3), 0
    for _, found in _answered("evaluate", predict_step, examples, batch_size):
        sums += found.losses.sum(), found.is_right.sum(), found.is_near.sum()
        count += len(found.labels)
    loss, top1, top5 = (float(total) / count for total in sums)
    return {"loss": loss, "top1": top1, "top5": top5, "examples": count}


def examine(
    predict_step: Callable[..., Any],
    examples: Examples | OnceOver,
    classes: Sequence[str],
    batch_size: int | None = None,
    *,
    mistakes: int = 24,
) -> Examination:
    """``evaluate`` class by class, in the same single pass over the examples.

    classes: their names, as many as there are logits. mistakes: so many wrongly answered images are kept, those with
        the most confident answers; of equal ones the first.

    The answer is the class of the largest logit, of equal ones the first. Where logits are not finite it is taken among
    the other classes, since the example counts as wrong.

    Returns an ``Examination``; its ``loss``, ``top1``, ``top5_rate`` and ``examples`` are those of ``evaluate``. Raises
    ValueError as ``evaluate``, and where there are less than two classes, or not as many as logits, or two of one
    name; where ``mistakes`` is negative, and for images that are not uint8 ``(n, height, width, 3)`` unless it is 0.
    """
    classes = tuple(classes)
    if len(classes) < 2 or len(set(classes)) < len(classes):
        raise ValueError(f"examine(): 'classes' should be at least two different names, not {_few(classes)}.")
    if isinstance(mistakes, bool) or not isinstance(mistakes, int) or mistakes < 0:
        raise ValueError(f"examine(): 'mistakes' should be an integer of at least 0, not {mistakes!r}.")
    confusion, top5 = np.zeros((len(classes), len(classes)), np.int64), np.zeros(len(classes), np.int64)
    losses, count, surest = 0.0, 0, _Mistakes.none()
    for own, found in _answered("examine", predict_step, examples, batch_size, len(classes)):
        np.add.at(confusion, (found.labels, found.answers), 1)
        np.add.at(top5, found.labels[found.is_near], 1)
        losses += float(found.losses.sum())
        if mistakes:
            surest = surest.joined(_Mistakes.of(own, found, count, mistakes), mistakes)
        count += len(found.labels)
    surest = _of_all_ranks(predict_step, surest, mistakes)
    return Examination(
        classes,
        confusion,
        top5,
        losses / int(confusion.sum()),
        surest.images,
        surest.labels.astype(np.int32),
        surest.answers.astype(np.int32),
        surest.confidences.astype(np.float32),
    )


@dataclass(frozen=True)
class _Answers:
    """To one batch; an entry an example. ``confidences`` are the answers' probabilities."""

    labels: np.ndarray
    answers: np.ndarray
    confidences: np.ndarray
    losses: np.ndarray
    is_near: np.ndarray  # among the top five

    @property
    def is_right(self) -> np.ndarray:
        return self.answers == self.labels

    @classmethod
    def joined(cls, parts: Sequence[_Answers]) -> _Answers:
        return cls(*(np.concatenate([getattr(part, field.name) for part in parts]) for field in fields(cls)))


@dataclass(frozen=True)
class _Own:
    """What of a batch this process was shown: its rows of the batch, and their images."""

    rows: slice
    images: np.ndarray


@dataclass(frozen=True)
class _Mistakes:
    """The surest first, of equally sure ones the first among the examples, where their ``places`` are."""

    images: np.ndarray
    labels: np.ndarray
    answers: np.ndarray
    confidences: np.ndarray
    places: np.ndarray

    @classmethod
    def none(cls) -> _Mistakes:
        return cls(np.empty((0, 0, 0, 3), np.uint8), *(np.empty(0) for _ in range(4)))

    @classmethod
    def of(cls, own: _Own, found: _Answers, first: int, most: int) -> _Mistakes:
        """Of those that this process was shown, of a batch whose first example has the place ``first``."""
        images = own.images
        if images.dtype != np.uint8 or images.ndim != 4 or images.shape[3] != 3:
            raise ValueError(
                f"examine(): to keep mistakes, images should be uint8 of shape (n, height, width, 3), not "
                f"{images.dtype} {images.shape}. Give mistakes=0 for others."
            )
        rows = np.arange(own.rows.start, own.rows.stop)
        rows = rows[~found.is_right[rows]]
        every = cls(
            images[rows - own.rows.start],
            found.labels[rows],
            found.answers[rows],
            found.confidences[rows],
            rows + first,
        )
        return every._surest(most)

    def joined(self, other: _Mistakes, most: int) -> _Mistakes:
        if not len(other.labels) or not len(self.labels):
            return other if len(other.labels) else self
        names = [field.name for field in fields(self)]
        pairs = [(getattr(self, name), getattr(other, name)) for name in names]
        return _Mistakes(*map(np.concatenate, pairs))._surest(most)

    def _surest(self, most: int) -> _Mistakes:
        """NaN stand last."""
        rows = np.lexsort((self.places, -self.confidences))[:most]
        return _Mistakes(*(getattr(self, field.name)[rows] for field in fields(self)))


def _answered(
    caller: str,
    predict_step: Callable[..., Any],
    examples: Examples | OnceOver,
    batch_size: int | None,
    classes: int | None = None,
) -> Iterator[tuple[_Own, _Answers]]:
    """Of each batch what this process was shown, and the answers to all of it."""
    if len(examples) == 0:
        raise ValueError(f"{caller}(): 'examples' is empty; at least one is needed.")
    if isinstance(examples, Examples) and batch_size is None:
        raise ValueError(f"{caller}(): 'batch_size' is needed for examples in memory.")
    if not isinstance(examples, Examples) and batch_size is not None:
        raise ValueError(f"{caller}(): 'batch_size' belongs to the pipeline that is given; leave it out here.")
    cluster = predict_step.contexts.cluster if isinstance(predict_step, Step) else None
    part = _part(predict_step)
    batches = _batches(examples, batch_size, part)
    while True:
        with together(cluster, f"while it read what {caller}() evaluates"):
            batch = next(batches, None)
        if batch is None:
            return
        images, labels = batch
        outputs = predict_step(images)
        with together(cluster, f"with the answers that {caller}() evaluates") as told:
            logits = _logits(caller, outputs, labels)
            if classes not in (None, logits.shape[1]):
                raise ValueError(f"{caller}(): there are {classes} classes, but logits of {logits.shape[1]}.")
            told.own = _answers(logits, labels)
        if part is None or cluster is None:
            yield _Own(slice(0, len(labels)), images), told.own
        else:
            start = sum(len(answers.labels) for answers in told.everyone[: cluster.rank])
            yield _Own(slice(start, start + len(labels)), images), _Answers.joined(told.everyone)


def _part(predict_step: Callable[..., Any]) -> Part | None:
    """Which of a batch's examples this rank's step is to be called with; None for all."""
    return predict_step.part if isinstance(predict_step, Step) and predict_step.takes_parts else None


def _batches(
    examples: Examples | OnceOver, batch_size: int | None, part: Part | None
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    if not isinstance(examples, Examples) and part and "part" in inspect.signature(examples.batches).parameters:
        return examples.batches(part=part)  # type: ignore[call-arg]
    given = () if batch_size is None else (batch_size,)
    whole: Iterator[tuple[np.ndarray, np.ndarray]] = examples.batches(*given)
    if part is None:
        return whole
    return ((images[part(len(labels))], labels[part(len(labels))]) for images, labels in whole)


def _of_all_ranks(predict_step: Callable[..., Any], own: _Mistakes, most: int) -> _Mistakes:
    if not isinstance(predict_step, Step) or not predict_step.takes_parts:
        return own
    cluster: Cluster | None = predict_step.contexts.cluster
    assert cluster is not None
    surest = _Mistakes.none()
    for of_rank in cluster.gathered(own):
        surest = surest.joined(of_rank, most)
    return surest


def _answers(logits: np.ndarray, labels: np.ndarray) -> _Answers:
    rows = np.arange(len(labels))
    of_label = logits[rows, labels][:, None]
    with np.errstate(invalid="ignore"):
        shifted = logits - logits.max(axis=1, keepdims=True)
        sums = np.exp(shifted).sum(axis=1)
        losses = np.log(sums) - shifted[rows, labels]
        earlier = np.arange(logits.shape[1]) < labels[:, None]
        place = ((logits > of_label) | ((logits == of_label) & earlier)).sum(axis=1)
    answers, is_near = logits.argmax(axis=1), place < 5
    broken = np.flatnonzero(~np.isfinite(logits).all(axis=1))
    if len(broken):
        others = np.where(np.isfinite(logits[broken]), logits[broken], -np.inf)
        others[np.arange(len(broken)), labels[broken]] = -np.inf
        answers[broken] = others.argmax(axis=1)
        answers[broken] += answers[broken] == labels[broken]  # where no other is finite: the first but the label
        is_near[broken] = False
    confidences = 1 / sums  # of the largest logit, which was shifted to 0
    confidences[broken] = np.nan
    return _Answers(labels, answers, confidences, losses, is_near)


def _logits(caller: str, outputs: Any, labels: np.ndarray) -> np.ndarray:
    """One row an example, float64."""
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits")
    if isinstance(outputs, (list, tuple)) and len(outputs) == 1:
        outputs = outputs[0]
    shape = np.shape(outputs) if isinstance(outputs, np.ndarray) else type(outputs).__name__
    if not isinstance(outputs, np.ndarray) or outputs.ndim != 2 or len(outputs) != len(labels):
        raise ValueError(
            f"{caller}(): 'predict_step' should give logits of shape ({len(labels)}, classes), not {shape}. Return "
            "them without an average: tm.function([images], logits)."
        )
    if len(labels) and (labels.min() < 0 or labels.max() >= outputs.shape[1]):
        raise ValueError(
            f"{caller}(): labels go from {labels.min()} to {labels.max()}, but there are logits of {outputs.shape[1]} "
            "classes. Labels count the classes from 0."
        )
    return outputs.astype("float64")


def _few(names: Sequence[str]) -> str:
    return ", ".join(map(repr, names[:8])) + (f" and {len(names) - 8} more" if len(names) > 8 else "") or "none"
