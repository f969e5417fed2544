"""The input pipeline: from files or arrays to batches of augmented images, the same whatever makes them."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import replace
from types import TracebackType
from typing import Any, Literal

import numpy as np

from theano_mgpu.data.augmentation import Augmentation
from theano_mgpu.data.batch_reader import BatchReader, ReadBatch
from theano_mgpu.data.batches import Batch, Part, part_of_sizes
from theano_mgpu.data.image_sizes import ImageSizes
from theano_mgpu.data.in_memory import Examples
from theano_mgpu.data.sources import ImageSource, source_of
from theano_mgpu.data.worker_processes import BatchStream, usable_cores

__all__ = ["Pipeline", "pipeline"]

_MOST_WORKERS = 16  # by default; more cores than that are seldom free


def pipeline(
    source: ImageSource | Examples,
    batch_size: int,
    *,
    train: bool,
    image_size: int | str = 224,
    seed: int = 0,
    augmentation: Augmentation | None = None,
    repeats: int = 1,
    epochs: int | None = None,
    drop_last: bool | None = None,
    workers: int | None = None,
    prefetch: int = 2,
    on_bad_image: Literal["raise", "skip"] = "raise",
) -> Pipeline:
    """Batches of square images, decoded, cropped, resized and augmented in worker processes.

        folder = tm.data.image_folder("imagenet")
        train = tm.data.pipeline(folder.train, 256, train=True, seed=0)
        val = tm.data.pipeline(folder.val, 256, train=False)

    source: a split of ``tm.data.image_folder``, ``Examples`` in memory, or any ``ImageSource``.
    train: whether images are shuffled and augmented, each epoch in another way; or come in order, each exactly once an
        epoch, the middle of each.
    image_size: pixels of a side; or "128:224", sizes that grow over ``epochs`` in steps of 32, the last one from 13/16
        of them on; or "160:192@11:13", from epoch 11 to epoch 13. Validation has the last size. A step is compiled once
        for each size.
    seed: what is drawn is a function of seed, epoch and example, never of workers, order or devices.
    augmentation: ``Augmentation()``, crops and flips, by default.
    repeats: each example comes so many times in a batch, augmented differently, and an epoch holds so many times fewer
        of them (Hoffer et al., "Augment your batch", CVPR 2020). A batch has all its examples, then all once more, so
        that with as many shards each shard sees an example once, as each process with torchvision's RASampler.
    drop_last: whether a smaller last batch is left out; by default for training only.
    workers: processes. 0 for none; by default one a usable core, 16 at most, and none for examples in memory. They
        begin with the first batch, which takes them two seconds, and end with ``close()`` or with this process; they
        leave SIGINT and SIGTERM to it.
    prefetch: batches that each worker keeps ready.
    on_bad_image: what is done about an image that turns out broken: "raise" ImageError, naming it; or "skip" it, with a
        warning for each that names it, and a count, ``bad_images``. Training takes the next whole one of the epoch
        instead; in validation it is missing, as no other may count twice.

    Raises ValueError or TypeError, naming the argument.
    """
    checked = source_of(source)
    for name, value, least in (("batch_size", batch_size, 1), ("repeats", repeats, 1), ("prefetch", prefetch, 1)):
        _check_whole(name, value, least)
    _check_whole("seed", seed, 0)
    if seed >= 2**63:
        raise ValueError(f"pipeline(): 'seed' should be less than 2 to the power of 63, not {seed}.")
    for name, optional, least in (("workers", workers, 0), ("epochs", epochs, 1)):
        if optional is not None:
            _check_whole(name, optional, least)
    if augmentation is not None and not isinstance(augmentation, Augmentation):
        raise ValueError(f"pipeline(): 'augmentation' should be tm.data.Augmentation(...), not {augmentation!r}.")
    if on_bad_image not in ("raise", "skip"):
        raise ValueError(f"pipeline(): 'on_bad_image' should be 'raise' or 'skip', not {on_bad_image!r}.")
    if repeats > 1 and not train:
        raise ValueError(f"pipeline(): repeats={repeats} is for training; validation sees each image once.")
    drop_last = train if drop_last is None else drop_last
    if len(checked) == 0:
        raise ValueError("pipeline(): 'source' is empty; at least one image is needed.")
    if drop_last and len(checked) < batch_size:
        raise ValueError(
            f"pipeline(): {len(checked)} images do not fill a batch of {batch_size}, and smaller ones are left out. "
            "Use a smaller batch_size, or drop_last=False."
        )
    sizes = ImageSizes.parse(image_size, epochs)
    settings = augmentation or Augmentation()
    if not train:
        sizes = ImageSizes(sizes.last, sizes.last)
        settings.resize_for(sizes.last)
    batches = len(checked) // batch_size if drop_last else -(-len(checked) // batch_size)
    reader = BatchReader(
        checked, int(batch_size), batches, train, sizes, int(seed), settings, int(repeats), on_bad_image
    )
    if workers is None:
        workers = 0 if isinstance(source, Examples) else min(usable_cores(), _MOST_WORKERS)
    return Pipeline(reader, workers=workers, prefetch=prefetch)


class Pipeline:
    """Made by ``tm.data.pipeline``; ``fit`` and ``evaluate`` take it. As a context manager it ends its workers."""

    def __init__(self, reader: BatchReader, *, workers: int, prefetch: int) -> None:
        self.reader = reader
        self._readers = [reader]
        self.workers = workers
        self._prefetch = prefetch
        self._idle: BatchStream | None = None
        self._in_use: set[BatchStream] = set()
        self._closed = False
        self._bad: dict[int, str] = {}

    def __len__(self) -> int:
        """The number of examples."""
        return len(self.reader.source)

    @property
    def batch_size(self) -> int:
        return self.reader.batch_size

    @property
    def batches_per_epoch(self) -> int:
        return self.reader.batches_per_epoch

    @property
    def bad_images(self) -> int:
        """How many different images were found broken so far, by this rank."""
        return len(self._bad)

    @property
    def bad_numbers(self) -> frozenset[int]:
        """Their numbers in the source."""
        return frozenset(self._bad)

    def image_size_at(self, epoch: int) -> int:
        """The side in pixels of the images of an epoch, counted from 0."""
        return self.reader.sizes.at(epoch)

    def batches_from(self, cursor: int, part: Part | None = None) -> Iterator[Batch]:
        """Batches of images, uint8 ``(n, size, size, 3)``, and labels, int32 ``(n,)``, without end.

        The cursor counts the batches of all epochs; what comes is a function of it alone.
        part: ``step.part`` of a step that takes parts. Of each batch only this rank's examples are read, and are what
        they are in the whole one.
        Raises ValueError for a negative cursor and for a pipeline that was closed; ImageError for a broken image.
        """
        if isinstance(cursor, bool) or not isinstance(cursor, int | np.integer) or cursor < 0:
            raise ValueError(f"batches_from(): 'cursor' should be an integer of at least 0, not {cursor!r}.")
        return self._batches_from(int(cursor), self._reader_of(part))

    def batches(self, epoch: int = 0, part: Part | None = None) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Images and labels of one epoch; for validation each image exactly once, in order. ``part`` as above."""
        first = epoch * self.batches_per_epoch
        source = self.batches_from(first, part)
        try:
            for _ in range(self.batches_per_epoch):
                images, labels = next(source).arrays
                yield images, labels
        finally:
            source.close()  # type: ignore[attr-defined]

    def close(self) -> None:
        """End the workers. A pipeline that is not closed ends them when it, or the process, ends."""
        self._closed = True
        for stream in [*self._in_use, *filter(None, [self._idle])]:
            stream.close()
        self._in_use, self._idle = set(), None

    def __enter__(self) -> Pipeline:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def _reader_of(self, part: Part | None) -> BatchReader:
        """The one that makes this part, the same for the same part, as its workers may be idle."""
        last = len(self) - (self.batches_per_epoch - 1) * self.batch_size
        parts = part_of_sizes(part, {self.batch_size, min(last, self.batch_size)})
        for reader in self._readers:
            if reader.parts == parts:
                return reader
        self._readers.append(replace(self.reader, parts=parts))
        return self._readers[-1]

    def _batches_from(self, cursor: int, reader: BatchReader) -> Iterator[Batch]:
        stream = self._stream_at(cursor, reader)
        try:
            while True:
                images, labels = self._whole(self._next(stream))
                cursor += 1
                yield Batch((images, labels), cursor, cursor / self.batches_per_epoch)
        finally:
            self._give_back(stream)

    def _next(self, stream: BatchStream) -> ReadBatch:
        if self._closed:
            raise ValueError("batches_from(): the pipeline was closed. Make another one with tm.data.pipeline.")
        return stream.next()

    def _stream_at(self, cursor: int, reader: BatchReader) -> BatchStream:
        """Workers that wait where ``cursor`` is, as those of an evaluation do for the next one, or new ones."""
        stream, self._idle = self._idle, None
        waits_here = stream is not None and self._alike(stream.position) == self._alike(cursor)
        if stream is not None and not (waits_here and stream.read is reader):
            stream.close()
            stream = None
        stream = stream or BatchStream(reader, cursor, self.workers, self._prefetch)
        self._in_use.add(stream)
        return stream

    def _alike(self, cursor: int) -> int:
        """All epochs of validation are one."""
        return cursor if self.reader.train else cursor % self.batches_per_epoch

    def _give_back(self, stream: BatchStream) -> None:
        self._in_use.discard(stream)
        if stream.failed or self._closed or self._idle is not None:
            stream.close()
        else:
            self._idle = stream

    def _whole(self, batch: ReadBatch) -> tuple[np.ndarray, np.ndarray]:
        images, labels, bad = batch
        for index, sentence in bad:
            if index not in self._bad:
                self._bad[index] = sentence
                instead = "another image is taken instead" if self.reader.train else "it is left out"
                warnings.warn(
                    f"pipeline(): {sentence.rstrip('.')}. Broken image {len(self._bad)}: {instead}.", stacklevel=4
                )
        return np.asarray(images), np.asarray(labels)


def _check_whole(name: str, value: Any, least: int) -> None:
    if isinstance(value, bool) or not isinstance(value, int | np.integer) or value < least:
        raise ValueError(f"pipeline(): '{name}' should be an integer of at least {least}, not {value!r}.")
