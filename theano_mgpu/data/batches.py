"""Batches with a cursor: where the data goes on is one integer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import numpy as np

from theano_mgpu.data.in_memory import Examples

__all__ = ["Batch", "BatchSource", "Batches"]


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

    def batches_from(self, cursor: int) -> Iterator[Batch]:
        """Batches without end. Raises ValueError for a negative cursor."""
        if cursor < 0:
            raise ValueError(f"batches_from(): 'cursor' is {cursor}; it counts examples from 0.")
        count = len(self.examples)
        end = count - count % self.batch_size if self.drop_last else count
        while True:
            epoch, start = divmod(cursor, count)
            order = self._order(epoch)
            while start < end:
                rows = order[start : min(start + self.batch_size, end)]
                start += len(rows)
                cursor = epoch * count + (start if start < end else count)
                yield Batch((self.examples.images[rows], self.examples.labels[rows]), cursor, cursor / count)
            cursor = (epoch + 1) * count

    def _order(self, epoch: int) -> np.ndarray:
        """The order of ``Examples.batches``, asked of examples that are their own numbers."""
        numbers = np.arange(len(self.examples))
        ((order, _),) = Examples(numbers, numbers).batches(len(numbers), seed=self.seed, epoch=epoch)
        return order
