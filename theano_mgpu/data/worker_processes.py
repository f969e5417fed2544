"""Batches made ahead by worker processes, through grain: one element is one batch, so that its cost counts once."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from typing import Any

from theano_mgpu.data.batch_reader import ReadBatch

__all__ = ["BatchStream", "usable_cores"]

_LEFT_TO_THE_MAIN_PROCESS = {signal.SIGINT, signal.SIGTERM}


class BatchStream:
    """``read(start)``, ``read(start + 1)`` and so on without end, in order; ``position`` is the number of the next.

    With ``workers=0`` each is read when it is asked for, in this process. With more, worker process w reads every
    ``workers``-th batch from w on, and keeps ``prefetch`` of them ready; images lie in memory shared with it.
    """

    def __init__(self, read: Callable[[int], ReadBatch], start: int, workers: int, prefetch: int) -> None:
        self.position = start
        self.failed = False
        self._workers = workers
        self._dataset = _dataset(read, start, workers, prefetch)
        self._iterator: Any = None
        self._first: list[ReadBatch] = []

    def next(self) -> ReadBatch:
        """Raises what ``read`` raised, in whatever process."""
        try:
            if self._iterator is None:
                self._start()
            batch = self._first.pop() if self._first else next(self._iterator)
        except BaseException:
            self.failed = True
            raise
        self.position += 1
        return batch

    def close(self) -> None:
        """End the workers. What comes after it raises ValueError."""
        self.failed = True
        if self._iterator is not None:
            self._iterator.close()

    def _start(self) -> None:
        self._iterator = iter(self._dataset)
        if self._workers:
            resource_tracker.ensure_running()  # which would unblock signals if it started later
            # A thread of its own, which passes its blocked signals on, while this one can still be interrupted.
            with ThreadPoolExecutor(1) as thread:
                self._first = [thread.submit(self._started).result()]

    def _started(self) -> ReadBatch:
        """The first batch; by then all workers have begun."""
        with _blocked_signals(), _without_main_module():
            return next(self._iterator)


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _dataset(read: Callable[[int], ReadBatch], start: int, workers: int, prefetch: int) -> Any:
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain's own, which it asks for where processes begin
        flags.FLAGS.mark_as_parsed()
    numbers = range(start, start + 2**48)
    dataset = (
        grain.MapDataset.source(numbers)
        .map(read)
        .to_iter_dataset(grain.ReadOptions(num_threads=0, prefetch_buffer_size=0))
    )
    options = grain.MultiprocessingOptions(num_workers=workers, per_worker_buffer_size=prefetch)
    return dataset.mp_prefetch(options, worker_init_fn=_end_with_parent) if workers else dataset


def _end_with_parent(worker: int, workers: int) -> None:
    """In a worker: a main process that was killed leaves none behind."""
    parent = parent_process()
    assert parent is not None

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


@contextmanager
def _blocked_signals() -> Iterator[None]:
    """Processes begun here never see Ctrl-C, nor what a cluster sends to all of a job: the main process finishes its
    step and ends them. A process inherits blocked signals, so that there is no moment before it could ignore them.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT_TO_THE_MAIN_PROCESS)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


@contextmanager
def _without_main_module() -> Iterator[None]:
    """Processes begun here do not run the user's script again, as those that are spawned do, in search of functions.

    So a script needs no ``if __name__ == "__main__"``, and workers begin sooner. What the script defines goes to them
    by value.
    """
    main = sys.modules["__main__"]
    hidden: dict[str, Any] = {name: main.__dict__[name] for name in ("__spec__", "__file__") if name in main.__dict__}
    main.__dict__["__spec__"] = None
    main.__dict__.pop("__file__", None)
    try:
        yield
    finally:
        main.__dict__.update(hidden)
