"""What a trained network sees in image files."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from theano_mgpu.data import Augmentation, decode, resized_crop
from theano_mgpu.data.crops import centre_crop
from theano_mgpu.errors import ImageError

__all__ = ["Prediction", "predictions"]

_THREADS = 4  # that read and scale


@dataclass(frozen=True)
class Prediction:
    """The most probable ``classes`` of one image and their ``probabilities``, the highest first.

    Of an image that could not be read, or to which the network's answer was not finite, there are none, and ``problem``
    says why.
    """

    path: Path
    classes: tuple[str, ...] = ()
    probabilities: tuple[float, ...] = ()
    problem: str = ""


def predictions(
    predict_step: Callable[..., Any],
    classes: Sequence[str],
    paths: Iterable[str | Path],
    *,
    image_size: int,
    resize: int | None = None,
    top: int = 5,
    batch_size: int = 32,
) -> list[Prediction]:
    """The classes that a network gives to image files, in their order; a broken file ends nothing.

    predict_step: ``tm.function([images], logits)``, of which the answers keep the batch axis, ``(n, classes)``; or any
        function of uint8 images ``(n, image_size, image_size, 3)`` that gives such logits, alone, in a list of one, or
        as "logits" in a dict.
    classes: a name for each logit.
    image_size, resize: pixels. As in validation, to the same bits, the shorter side is scaled to ``resize`` (bilinear,
        antialiased; by default as ``Augmentation`` has it), and the square in the middle taken.
    top: how many classes to give, all if there are fewer.

    Probabilities are softmax's, in float64; of equal ones the first class comes first. The last batch is filled up with
    repetitions, so that the step is compiled for one size.
    Raises ValueError for arguments out of range, and for logits of another form or number of classes.
    """
    given = {"image_size": image_size, "resize": resize, "top": top, "batch_size": batch_size}
    for name, value in given.items():
        if name == "resize" and value is None:
            continue
        if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
            raise ValueError(f"predictions(): '{name}' should be an integer of at least 1, not {value!r}.")
    resize = Augmentation().resize_for(image_size) if resize is None else resize
    if resize < image_size:
        raise ValueError(
            f"predictions(): 'resize' is {resize}, less than 'image_size', {image_size}, which is cut from it."
        )
    files = [Path(path) for path in paths]
    found: list[Prediction] = []
    size = min(batch_size, len(files))
    with ThreadPoolExecutor(_THREADS) as threads:
        for start in range(0, len(files), batch_size):
            batch = files[start : start + batch_size]
            views = list(threads.map(lambda path: _view(path, image_size, resize), batch))
            seen = [view for view in views if isinstance(view, np.ndarray)]
            answers = iter(_logits(predict_step, seen, size, len(classes)) if seen else ())
            for path, view in zip(batch, views, strict=True):
                found.append(
                    Prediction(path, problem=view)
                    if isinstance(view, str)
                    else _best(path, next(answers), classes, top)
                )
    return found


def _view(path: Path, size: int, resize: int) -> np.ndarray | str:
    """What the network is shown of a file, uint8 (size, size, 3), or why it is shown nothing."""
    try:
        pixels = decode(path.read_bytes())
    except ImageError as error:
        return str(error)
    except OSError as error:
        return f"cannot be read ({error.strerror})"
    height, width = pixels.shape[:2]
    return resized_crop(pixels, centre_crop(width, height, size, resize), size, within="image")


def _logits(predict_step: Callable[..., Any], seen: list[np.ndarray], size: int, classes: int) -> np.ndarray:
    """One row an image, float64."""
    outputs = predict_step(np.stack(seen + seen[-1:] * (size - len(seen))))
    if isinstance(outputs, Mapping):
        outputs = outputs.get("logits")
    if isinstance(outputs, (list, tuple)) and len(outputs) == 1:
        outputs = outputs[0]
    shape = np.shape(outputs) if isinstance(outputs, np.ndarray) else type(outputs).__name__
    if shape != (size, classes):
        raise ValueError(
            f"predictions(): 'predict_step' should give logits of shape ({size}, {classes}), as there are {classes} "
            f"names in 'classes', not {shape}. Return them without an average: tm.function([images], logits)."
        )
    return outputs[: len(seen)].astype("float64")


def _best(path: Path, logits: np.ndarray, classes: Sequence[str], top: int) -> Prediction:
    if not np.isfinite(logits).all():
        return Prediction(path, problem="the network's answer is not finite")
    exponentials = np.exp(logits - logits.max())
    probabilities = exponentials / exponentials.sum()
    order = np.argsort(-logits, kind="stable")[:top]
    return Prediction(path, tuple(classes[i] for i in order), tuple(float(probabilities[i]) for i in order))
