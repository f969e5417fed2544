"""What an evaluation found, class by class, and the mistakes that the network was surest of."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from theano_mgpu.data.table import class_table
from theano_mgpu.weights.whole_file import write_whole

__all__ = ["Examination"]


@dataclass(frozen=True, eq=False)
class Examination:
    """A network's answers to all examples, counted; ``tm.training.examine`` makes it.

    classes: their names, in the order of the labels.
    confusion: int64 ``(classes, classes)``, numbers of examples; a row is the true class, a column the answer.
    top5: int64 ``(classes,)``, of each true class the examples that have it among the five largest logits.
    loss: the mean of ``-log softmax(logits)[label]``.
    mistake_images: uint8 ``(m, height, width, 3)``, wrongly answered, the surest first; ``mistake_labels`` and
        ``mistake_answers`` int32 ``(m,)``, the true class and the answer; ``mistake_confidences`` float32 ``(m,)``, the
        answer's probability by softmax, NaN where the logits were not finite.
    """

    classes: tuple[str, ...]
    confusion: np.ndarray
    top5: np.ndarray
    loss: float
    mistake_images: np.ndarray
    mistake_labels: np.ndarray
    mistake_answers: np.ndarray
    mistake_confidences: np.ndarray

    def __post_init__(self) -> None:
        """Raises ValueError where the parts do not fit together, as those of a file may not."""
        count, mistakes = len(self.classes), len(self.mistake_images)
        if self.confusion.shape != (count, count) or self.top5.shape != (count,):
            raise ValueError(f"a confusion matrix of shape {self.confusion.shape} for {count} classes")
        if self.mistake_images.ndim != 4 or self.mistake_images.shape[-1] != 3:
            raise ValueError(f"mistaken images of shape {self.mistake_images.shape}")
        for numbers in (self.mistake_labels, self.mistake_answers, self.mistake_confidences):
            if numbers.shape != (mistakes,):
                raise ValueError(f"{numbers.shape} labels, answers or confidences of {mistakes} mistakes")
        named = np.concatenate([self.mistake_labels, self.mistake_answers])
        if named.size and not 0 <= named.min() <= named.max() < count:
            raise ValueError(f"mistakes of class {named.min()} to {named.max()}, but there are {count} classes")

    @cached_property
    def examples(self) -> int:
        """Their number."""
        return int(self.confusion.sum())

    @property
    def top1(self) -> float:
        """The part of the examples that was answered rightly, from 0 to 1."""
        return int(self.confusion.trace()) / self.examples

    @property
    def top5_rate(self) -> float:
        """The part of the examples whose class was among the five first answers, from 0 to 1."""
        return int(self.top5.sum()) / self.examples

    @property
    def per_class(self) -> dict[str, dict[str, Any]]:
        """For each class "examples", and "top1" and "top5" from 0 to 1; None for a class without examples."""
        numbers = zip(self.confusion.sum(axis=1), self.confusion.diagonal(), self.top5, strict=True)
        return {
            name: {
                "examples": int(examples),
                "top1": int(right) / int(examples) if examples else None,
                "top5": int(near) / int(examples) if examples else None,
            }
            for name, (examples, right, near) in zip(self.classes, numbers, strict=True)
        }

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write an ``.npz`` of arrays by these names, whole or not at all. Raises OSError where that cannot be."""
        arrays: dict[str, Any] = {field.name: np.asarray(getattr(self, field.name)) for field in fields(self)}
        write_whole(Path(path), lambda file: np.savez(file, **arrays))

    @classmethod
    def load(cls, path: str | os.PathLike[str]) -> Examination:
        """What ``save`` wrote. Raises FileNotFoundError, and ValueError for a file of another kind."""
        names = [field.name for field in fields(cls)]
        try:
            with open(path, "rb") as opened, np.load(opened, allow_pickle=False) as file:
                arrays = {name: file[name] for name in names}
            return cls(**{**arrays, "classes": tuple(arrays["classes"].tolist()), "loss": float(arrays["loss"])})
        except (ValueError, KeyError, TypeError, EOFError, zipfile.BadZipFile) as error:
            raise ValueError(
                f"load(): '{path}' is not a whole file that Examination.save wrote, with the arrays "
                f"{', '.join(names)}: {error}."
            ) from error

    def __str__(self) -> str:
        rates = list(self.per_class.values())
        columns = {
            "top-1": (_percent(self.top1), [_percent(rate["top1"]) for rate in rates]),
            "top-5": (_percent(self.top5_rate), [_percent(rate["top5"]) for rate in rates]),
            "images": (f"{self.examples:,}", [f"{rate['examples']:,}" for rate in rates]),
        }
        overall = (
            f"top-1 {_percent(self.top1)}, top-5 {_percent(self.top5_rate)}, loss {self.loss:.4g} over "
            f"{self.examples:,} images."
        )
        return f"{class_table(self.classes, columns)}\n{overall}"


def _percent(rate: float | None) -> str:
    return "none" if rate is None else f"{100 * rate:.2f} %"
