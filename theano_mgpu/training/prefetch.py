"""The next batches, fetched by a thread and sent to the devices while they compute the step before."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from queue import Empty, Queue
from types import TracebackType
from typing import Any

from theano_mgpu.data.batches import Batch, BatchSource, batches_of
from theano_mgpu.step import Step
from theano_mgpu.training.state import Progress

__all__ = ["Prefetch", "Prefetched"]

_PATIENCE = 10.0  # seconds for a source that is in the middle of a batch when nobody needs it any more


@dataclass(frozen=True)
class Prefetched:
    """A batch, the learning rate of its step where there is a schedule, and what the step is called with."""

    batch: Batch
    learning_rate: float | None
    arguments: tuple[Any, ...]


@dataclass(frozen=True)
class _Raised:
    error: BaseException


class Prefetch:
    """Batches of a source, in order, two ahead of the step at the most: one that waits, and one that is being made.

        with Prefetch(step, batches, schedule) as ahead:
            for given in ahead.going_on(state.progress):
                step(*given.arguments)
                state.advance(cursor=given.batch.cursor)

    Of a step that takes parts, under mpirun, a batch's arrays are this rank's part of them.

    The source, the schedule and ``step.put`` are called by one thread, which begins with the first batch that is asked
    for. Whatever they raise is raised where the batch would have come, after all the batches before it. The thread ends
    with the ``with`` block: a fetch that is going on is waited for, ten seconds at the most.
    """

    def __init__(self, step: Step, batches: BatchSource, learning_rate: Callable[[int], float] | None = None) -> None:
        self._step = step
        self._batches = batches
        self._learning_rate = learning_rate
        self._waiting: Queue[Prefetched | _Raised | None] = Queue(maxsize=1)
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None

    def going_on(self, progress: Progress) -> Iterator[Prefetched]:
        """Batches from the cursor of ``progress`` on, for its next step and those after it."""
        part = self._step.part if self._step.takes_parts else None
        source = iter(batches_of(self._batches, progress.cursor, part))
        self._thread = threading.Thread(
            target=self._fetch, args=(source, progress.step), name="theano_mgpu prefetch", daemon=True
        )
        self._thread.start()
        while (given := self._waiting.get()) is not None:
            if isinstance(given, _Raised):
                raise given.error
            yield given

    def _fetch(self, source: Iterator[Batch], number: int) -> None:
        try:
            while not self._stopping.is_set():
                batch = next(source, None)
                self._waiting.put(None if batch is None else self._ready(batch, number))
                if batch is None:
                    return
                number += 1
        except BaseException as error:
            self._waiting.put(_Raised(error))
        finally:
            if callable(close := getattr(source, "close", None)):
                close()

    def _ready(self, batch: Batch, number: int) -> Prefetched:
        rate = None if self._learning_rate is None else self._learning_rate(number)
        arguments = batch.arrays if rate is None else (*batch.arrays, rate)
        # What takes turns may be more than the devices have memory for; the step sends it, turn by turn.
        if self._step.sends_ahead and self._step.shards <= sum(self._step.contexts.counts):
            arguments = (self._step.put(*arguments),)
        return Prefetched(batch, rate, arguments)

    def __enter__(self) -> Prefetch:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stopping.set()
        if self._thread is None:
            return
        with contextlib.suppress(Empty):
            self._waiting.get_nowait()  # makes room: the thread puts one more at the most, and sees that it is the end
        self._thread.join(_PATIENCE)
