"""One batch by its number: which examples, decoded, cropped, resized, changed. What a worker process runs."""

from __future__ import annotations

import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np

from theano_mgpu.data.augmentation import Augmentation
from theano_mgpu.data.colours import erase, jitter, rand_augment, trivial_augment
from theano_mgpu.data.crops import centre_crop, random_resized_crop
from theano_mgpu.data.image_sizes import ImageSizes
from theano_mgpu.data.resize import Box, resized_crop
from theano_mgpu.data.sources import ImageSource
from theano_mgpu.errors import ImageError

__all__ = ["BatchReader", "ReadBatch", "example_generator"]

#: Images uint8 ``(n, size, size, 3)``, labels int32 ``(n,)``, and what was broken: its number and a sentence.
ReadBatch = tuple[np.ndarray, np.ndarray, tuple[tuple[int, str], ...]]


@dataclass(eq=False)
class BatchReader:
    """Batches as a function of their number alone, counted over all epochs.

    Every random choice is a function of ``(seed, epoch, example, repeat)``; the order of an epoch of ``(seed, epoch)``.
    ``parts``: of a batch of so many examples those that one of mpirun's ranks makes; all of them by default.
    """

    source: ImageSource
    batch_size: int
    batches_per_epoch: int
    train: bool
    sizes: ImageSizes
    seed: int
    augmentation: Augmentation
    repeats: int
    on_bad_image: Literal["raise", "skip"]
    parts: Mapping[int, slice] | None = None
    _order: tuple[int, np.ndarray] | None = field(default=None, init=False, repr=False)

    def __post_init__(self) -> None:
        takes_fast = "fast" in inspect.signature(self.source.read).parameters
        self._options = {"fast": True} if self.train and takes_fast else {}

    def __call__(self, number: int) -> ReadBatch:
        """Raises ImageError for a broken image with ``on_bad_image="raise"``, and where no image is whole."""
        epoch, place = divmod(number, self.batches_per_epoch)
        in_turn = range(len(self.source))[place * self.batch_size : (place + 1) * self.batch_size]
        # All examples, then all once more: shards are consecutive, and none should see an example twice.
        places = sorted(in_turn, key=lambda place: place % self.repeats) if self.train else in_turn
        if self.parts is not None:
            places = places[self.parts[len(places)]]
        size = self.sizes.at(epoch)
        images = np.empty((len(places), size, size, 3), np.uint8)
        labels = np.empty(len(places), np.int32)
        bad: list[tuple[int, str]] = []
        row = 0
        for place in places:
            index = self._fill(images[row], place, epoch, bad)
            if index is not None:
                labels[row] = self.source.labels[index]
                row += 1
        if not row and self.parts is None:  # else another rank may have some
            raise ImageError(f"none of the {len(places)} images of a batch could be read; the first: {bad[0][1]}")
        return images[:row], labels[:row], tuple(bad)

    def _fill(self, out: np.ndarray, place: int, epoch: int, bad: list[tuple[int, str]]) -> int | None:
        """The example at a place of the epoch, or, for training, the next behind it that is whole; its number.

        None for validation: no other image may count twice.
        """
        count = len(self.source)
        for further in range(count if self.train else 1):
            index, repeat = self._example_at((place + further * self.repeats) % count, epoch)
            try:
                self._draw(out, index, epoch, repeat)
            except ImageError as error:
                if self.on_bad_image == "raise":
                    raise ImageError(f"{str(error).rstrip('.')}. Remove it, or give on_bad_image='skip'.") from error
                bad.append((index, str(error)))
            else:
                return index
        if self.train:
            raise ImageError(f"none of the {count} images could be read; the last: {bad[-1][1]}")
        return None

    def _example_at(self, place: int, epoch: int) -> tuple[int, int]:
        """The number of an example, and how often it came before in the epoch."""
        if not self.train:
            return place, 0
        if self._order is None or self._order[0] != epoch:
            self._order = epoch, np.random.default_rng([self.seed, epoch]).permutation(len(self.source))
        return int(self._order[1][place // self.repeats]), place % self.repeats

    def _draw(self, out: np.ndarray, index: int, epoch: int, repeat: int) -> None:
        """Image ``index`` as it is seen in ``epoch``, into ``out``, ``(size, size, 3)``."""
        size, settings = len(out), self.augmentation
        whole = int(self.source.widths[index]), int(self.source.heights[index])
        if not self.train:
            resize = settings.resize_for(size)
            self._crop(out, index, whole, centre_crop(*whole, size, resize), within="image")
            return
        rng = example_generator(self.seed, epoch, index, repeat)
        if settings.padding is None:
            box = random_resized_crop(rng, *whole, settings.area, settings.ratio)
            self._crop(out, index, whole, box, flip=rng.random() < settings.flip)
        else:
            self._crop(out, index, whole, centre_crop(*whole, size, size), flip=rng.random() < settings.flip)
            out[:] = _moved(out, *rng.integers(-settings.padding, settings.padding + 1, 2))
        if settings.jitter is not None:
            out[:] = jitter(rng, out, settings.jitter)
        if settings.rand_augment is not None:
            out[:] = rand_augment(rng, out, settings.rand_augment)
        if settings.trivial_augment is not None:
            out[:] = trivial_augment(rng, out, settings.trivial_augment)
        if settings.erasing is not None:
            erase(rng, out, settings.erasing)

    def _crop(
        self,
        out: np.ndarray,
        index: int,
        whole: tuple[int, int],
        box: Box,
        *,
        flip: bool = False,
        within: Literal["box", "image"] = "box",
    ) -> None:
        """For training a JPEG comes at a smaller scale, where the box has at least as many pixels as ``out`` even then.

        Not for validation, whose figures are compared with those of others, who decode at full size.
        """
        size = len(out)
        options: dict[str, Any] = dict(self._options)
        if self.train and box.width > size and box.height > size:
            options["min_width"] = math.ceil(size * whole[0] / box.width)
            options["min_height"] = math.ceil(size * whole[1] / box.height)
        pixels = self.source.read(index, **options)
        scaled = box.scaled(pixels.shape[1] / whole[0], pixels.shape[0] / whole[1])
        resized_crop(pixels, scaled, size, flip=flip, within=within, out=out)


def example_generator(seed: int, epoch: int, index: int, repeat: int) -> np.random.Generator:
    """What is drawn for one example in one epoch: a stream of a counter-based generator that no other one meets.

    Salmon et al., "Parallel random numbers: as easy as 1, 2, 3", SC 2011: Philox, which needs no warming up; NumPy's
    default generator takes twice as long to seed.
    """
    return np.random.Generator(np.random.Philox(key=[seed, epoch], counter=[0, 0, index, repeat]))


def _moved(image: np.ndarray, down: int, across: int) -> np.ndarray:
    """The same size, black where nothing was."""
    moved = np.zeros_like(image)
    height, width = image.shape[:2]
    moved[max(down, 0) : height + min(down, 0), max(across, 0) : width + min(across, 0)] = image[
        max(-down, 0) : height + min(-down, 0), max(-across, 0) : width + min(-across, 0)
    ]
    return moved
