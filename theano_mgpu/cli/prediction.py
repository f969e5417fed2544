"""``theano-mgpu predict``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tyro.conf import OmitArgPrefixes, Positional

from theano_mgpu.cli.parsing import answer, parsed
from theano_mgpu.cli.source import Source

if TYPE_CHECKING:
    from theano_mgpu.training import Prediction

__all__ = ["run"]


@dataclass(frozen=True)
class _Options:
    """The most probable classes of images."""

    images: Positional[tuple[Path, ...]]
    """Image files."""
    source: OmitArgPrefixes[Source] = field(default_factory=Source)
    top: int = 5
    """How many classes to show of each."""
    batch_size: int = 32
    """Images at a time."""
    json: bool = False
    """Print JSON."""


def run(words: Sequence[str]) -> None:
    """Raises ValueError, after the answer for the others, where an image could not be read."""
    options = parsed(_Options, words, "predict")
    if not options.images:
        raise ValueError("name an image file at least: theano-mgpu predict --run RUN IMAGE...")

    from theano_mgpu.training import predictions

    trained = options.source.read()
    found = predictions(
        trained.predict,
        trained.classes,
        options.images,
        image_size=trained.recipe.evaluation_size,
        resize=trained.recipe.evaluation_resize,
        top=options.top,
        batch_size=options.batch_size,
    )
    values = {"source": trained.source, "predictions": [_values(prediction) for prediction in found]}
    answer(values, "\n".join(map(_text, found)), as_json=options.json)
    broken = [prediction.path for prediction in found if prediction.problem]
    if broken:
        raise ValueError(f"{len(broken)} of {len(found)} images got no answer, '{broken[0]}' the first.")


def _values(prediction: Prediction) -> dict[str, Any]:
    classes = [
        {"class": name, "probability": probability}
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True)
    ]
    return {"path": str(prediction.path), "classes": classes, "problem": prediction.problem or None}


def _text(prediction: Prediction) -> str:
    if prediction.problem:
        return f"{prediction.path}: {prediction.problem}"
    rows = zip(prediction.classes, prediction.probabilities, strict=True)
    return "\n".join([f"{prediction.path}", *(f"  {probability:6.1%}  {name}" for name, probability in rows)])
