"""What the input pipeline reads from: anything with labels, sizes and pixels by number."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import numpy as np

from theano_mgpu.data.in_memory import Examples

__all__ = ["ImageSource", "InMemory", "source_of"]


@runtime_checkable
class ImageSource(Protocol):
    """Images by number, with what has to be known before one is read.

    ``labels`` integers ``(n,)``; ``widths`` and ``heights`` in pixels, as ``read`` gives them at full size, ``(n,)``:
    a crop is chosen from them, before anything is decoded. A source goes to worker processes by pickle.
    """

    @property
    def labels(self) -> np.ndarray: ...

    @property
    def widths(self) -> np.ndarray: ...

    @property
    def heights(self) -> np.ndarray: ...

    def __len__(self) -> int: ...

    def read(self, index: int, *, min_width: int | None = None, min_height: int | None = None) -> np.ndarray:
        """The pixels, uint8 ``(height, width, 3)``; at a smaller scale, if that is faster and at least that large.

        Raises ImageError, naming the image, for one that is broken. A source whose ``read`` also takes ``fast`` is
        asked with ``fast=True`` for training: less exact pixels in less time.
        """
        ...


@dataclass(frozen=True, eq=False)
class InMemory:
    """Examples in memory as an image source: ``read`` gives a row."""

    examples: Examples
    widths: np.ndarray = field(init=False)
    heights: np.ndarray = field(init=False)

    def __post_init__(self) -> None:
        count, height, width = self.examples.images.shape[:3]
        object.__setattr__(self, "widths", np.broadcast_to(np.int64(width), count))
        object.__setattr__(self, "heights", np.broadcast_to(np.int64(height), count))

    @property
    def labels(self) -> np.ndarray:
        return self.examples.labels

    def __len__(self) -> int:
        return len(self.examples)

    def read(self, index: int, *, min_width: int | None = None, min_height: int | None = None) -> np.ndarray:
        return self.examples.images[index]


def source_of(given: object) -> ImageSource:
    """``given`` as an image source. Raises TypeError or ValueError, saying what is missing or does not fit."""
    if isinstance(given, Examples):
        if given.images.ndim != 4 or given.images.shape[3] != 3 or given.images.dtype != np.uint8:
            raise ValueError(
                "pipeline(): 'source' should hold uint8 images of shape (n, height, width, 3), not "
                f"{given.images.dtype} {given.images.shape}. tm.training.Batches takes examples of any form."
            )
        given = InMemory(given)
    missing = [name for name in ("labels", "widths", "heights", "read", "__len__") if not hasattr(given, name)]
    if missing:
        raise TypeError(
            f"pipeline(): 'source' is a {type(given).__name__} without {', '.join(missing)}. Expected what "
            "tm.data.image_folder(...).train is, Examples in memory, or an object with the members of "
            "tm.data.ImageSource."
        )
    assert isinstance(given, ImageSource)
    for name in ("labels", "widths", "heights"):
        if np.shape(getattr(given, name)) != (len(given),):
            raise ValueError(
                f"pipeline(): the source's '{name}' has shape {np.shape(getattr(given, name))}, but there are "
                f"{len(given)} images. Expected ({len(given)},)."
            )
    if not np.issubdtype(np.asarray(given.labels).dtype, np.integer):
        raise ValueError(f"pipeline(): the source's 'labels' should be integers, not {np.asarray(given.labels).dtype}.")
    return given
