"""Images held in memory, and small folders in ImageNet's layout, ``SPLIT/CLASS/*.jpg``, read whole into it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from theano_mgpu.data.decoding import decode
from theano_mgpu.errors import ImageError

__all__ = ["Examples", "class_names", "read_split"]

_SUFFIXES = (".jpg", ".jpeg", ".png")


@dataclass(frozen=True)
class Examples:
    """Images and their labels: ``images`` uint8 ``(n, height, width, 3)``, ``labels`` int32 ``(n,)``."""

    images: np.ndarray
    labels: np.ndarray

    def __len__(self) -> int:
        return len(self.labels)

    def batches(
        self, batch_size: int, *, seed: int | None = None, epoch: int = 0
    ) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """One epoch of ``(images, labels)`` batches; every example comes once, the last batch may be smaller.

        The order depends on ``(seed, epoch)`` alone; without a seed it is the order of the files.
        Raises ValueError if ``batch_size`` is not positive.
        """
        if batch_size < 1:
            raise ValueError(f"batches(): 'batch_size' must be at least 1, got {batch_size}.")
        order = np.arange(len(self)) if seed is None else np.random.default_rng([seed, epoch]).permutation(len(self))
        return (
            (self.images[rows], self.labels[rows])
            for rows in np.split(order, range(batch_size, len(order), batch_size))
        )


def class_names(folder: str | Path) -> tuple[str, ...]:
    """The classes of an image folder, sorted: the sub-folders of ``train``. A label is a place in this tuple.

    Raises FileNotFoundError if there is no ``train`` folder or it has no sub-folder.
    """
    train = Path(folder) / "train"
    names = tuple(sorted(entry.name for entry in train.iterdir() if entry.is_dir())) if train.is_dir() else ()
    if not names:
        raise FileNotFoundError(
            f"class_names(): '{train}' has no class folders. Expected ImageNet's layout, train/CLASS/*.jpg and "
            "val/CLASS/*.jpg."
        )
    return names


def read_split(folder: str | Path, split: str) -> Examples:
    """Every image of ``split`` ("train" or "val"), class by class, in the order of the file names.

    Greyscale images get three equal channels. All images must have one size, the first one's.
    Raises FileNotFoundError if there are no images, ValueError for a class that ``train`` lacks or an image of another
    size, ImageError (a ValueError) for a file that is no image, naming it.
    """
    folder = Path(folder)
    names = class_names(folder)
    paths = sorted(path for path in (folder / split).glob("*/*") if path.suffix.lower() in _SUFFIXES)
    if not paths:
        raise FileNotFoundError(f"read_split(): no images found. Expected '{folder / split}/CLASS/*.jpg'.")
    for path in paths:
        if path.parent.name not in names:
            raise ValueError(
                f"read_split(): '{path}' is of class '{path.parent.name}', which has no folder in '{folder / 'train'}'."
            )
    images = np.empty((len(paths), *_read_image(paths[0]).shape), dtype=np.uint8)
    for row, path in enumerate(paths):
        image = _read_image(path)
        if image.shape != images.shape[1:]:
            raise ValueError(
                f"read_split(): '{path}' is {image.shape[1]} x {image.shape[0]} pixels but '{paths[0]}' is "
                f"{images.shape[2]} x {images.shape[1]}. Resize the images to one size first."
            )
        images[row] = image
    labels = np.asarray([names.index(path.parent.name) for path in paths], dtype=np.int32)
    return Examples(images, labels)


def _read_image(path: Path) -> np.ndarray:
    try:
        return decode(path.read_bytes())
    except ImageError as error:
        raise ImageError(f"read_split(): '{path}': {error}") from error
