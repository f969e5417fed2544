"""Batches with a cursor: where the data goes on is one integer."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np

from theano_mgpu.data.in_memory import Examples

__all__ = ["Batch", "BatchSource", "Batches", "Part", "batches_of", "part_of_sizes"]

#: Which of a batch's examples one of mpirun's ranks computes, by their number: ``step.part``.
Part = Callable[[int], slice]


@dataclass(frozen=True)
class Batch:
    """What one step is given: ``arrays`` in the order of its inputs, all of one length.

    ``cursor`` is where the data goes on after it, and ``epoch`` how many epochs that is: a whole number exactly where
    an epoch has ended.
    """

    arrays: tuple[Any, ...]
    cursor: int
    epoch: float

    def __len__(self) -> int:
        return len(self.arrays[0])


class BatchSource(Protocol):
    """What ``fit`` needs of data: batches from a cursor on, 0 at the start, epoch after epoch, without end.

    What comes is a function of the cursor alone, whatever was read before, so that a run which goes on from a
    checkpoint sees the same batches. A thread fetches them ahead of the step, so each batch has arrays of its own.

    Under mpirun all ranks ask for the same batches. Where a step takes parts (``split_over="ranks"``), ``fit`` cuts
    this rank's out of each. A source that need not make the others' takes a second argument:
    ``batches_from(cursor, part)`` gives of each batch of n examples the ``part(n)``, a slice, with the whole batch's
    cursor and epoch.
    """

    def batches_from(self, cursor: int) -> Iterator[Batch]: ...


class Batches:
    """Batches of examples in memory; the order of each epoch is a function of ``(seed, epoch)``.

    The cursor counts the examples of all epochs so far. The last batch of an epoch is smaller where ``batch_size`` does
    not divide the examples, or left out with ``drop_last``.

    Raises ValueError where there are no examples, ``batch_size`` is not positive, or nothing but a smaller batch is
    there to be left out.
    """

    def __init__(self, examples: Examples, batch_size: int, seed: int | None = 0, *, drop_last: bool = False) -> None:
        if isinstance(batch_size, bool) or not isinstance(batch_size, (int, np.integer)) or batch_size < 1:
            raise ValueError(f"Batches(): 'batch_size' should be an integer of at least 1, not {batch_size!r}.")
        if len(examples) == 0:
            raise ValueError("Batches(): 'examples' is empty; at least one is needed.")
        if drop_last and len(examples) < batch_size:
            raise ValueError(
                f"Batches(): {len(examples)} examples do not fill a batch of {batch_size}, and drop_last=True leaves "
                "smaller ones out. Use a smaller batch_size."
            )
        self.examples = examples
        self.batch_size = int(batch_size)
        self.seed = seed
        self.drop_last = drop_last

    def batches_from(self, cursor: int, part: Part | None = None) -> Iterator[Batch]:
        """Batches without end, or ``part`` of each. Raises ValueError for a negative cursor."""
        if cursor < 0:
            raise ValueError(f"batches_from(): 'cursor' is {cursor}; it counts examples from 0.")
        end = self._end
        sizes = {self.batch_size, end % self.batch_size, (end - cursor % len(self.examples)) % self.batch_size}
        return self._batches_from(cursor, part_of_sizes(part, sizes))

    @property
    def _end(self) -> int:
        """Of an epoch, in examples."""
        count = len(self.examples)
        return count - count % self.batch_size if self.drop_last else count

    def _batches_from(self, cursor: int, parts: Mapping[int, slice] | None) -> Iterator[Batch]:
        count, end = len(self.examples), self._end
        while True:
            epoch, start = divmod(cursor, count)
            order = self._order(epoch)
            while start < end:
                rows = order[start : min(start + self.batch_size, end)]
                start += len(rows)
                cursor = epoch * count + (start if start < end else count)
                own = rows if parts is None else rows[parts[len(rows)]]
                yield Batch((self.examples.images[own], self.examples.labels[own]), cursor, cursor / count)
            cursor = (epoch + 1) * count

    def _order(self, epoch: int) -> np.ndarray:
        """The order of ``Examples.batches``, asked of examples that are their own numbers."""
        numbers = np.arange(len(self.examples))
        ((order, _),) = Examples(numbers, numbers).batches(len(numbers), seed=self.seed, epoch=epoch)
        return order


def batches_of(source: BatchSource, cursor: int, part: Part | None) -> Iterator[Batch]:
    """A source's batches from a cursor on, or of each this rank's ``part``, also where the source knows of none."""
    if part is None:
        return source.batches_from(cursor)
    if "part" in inspect.signature(source.batches_from).parameters:
        return source.batches_from(cursor, part=part)  # type: ignore[call-arg]
    return _cut_out(source.batches_from(cursor), part)


def part_of_sizes(part: Part | None, sizes: set[int]) -> Mapping[int, slice] | None:
    """``part`` asked now, on all ranks alike: a step may cut its batches otherwise once memory ran out."""
    return None if part is None else {size: part(size) for size in sizes if size > 0}


def _cut_out(batches: Iterator[Batch], part: Part) -> Iterator[Batch]:
    for batch in batches:
        own = part(len(batch))
        yield replace(batch, arrays=tuple(array[own] for array in batch.arrays))
