"""Batches made ahead by worker processes, through grain: one element is one batch, so that its cost counts once."""

from __future__ import annotations

import atexit
import ctypes
import os
import signal
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from multiprocessing import parent_process, resource_tracker
from multiprocessing.util import Finalize
from typing import Any

from theano_mgpu.data.batch_reader import ReadBatch

__all__ = ["BatchStream", "usable_cores"]

_LEFT_TO_THE_MAIN_PROCESS = {signal.SIGINT, signal.SIGTERM}


class BatchStream:
    """``read(start)``, ``read(start + 1)`` and so on without end, in order; ``position`` is the number of the next.

    With ``workers=0`` each is read when it is asked for, in this process. With more, worker process w reads every
    ``workers``-th batch from w on, and keeps some ready; images lie in memory shared with it.
    """

    def __init__(self, read: Callable[[int], ReadBatch], start: int, workers: int, prefetch: int) -> None:
        self.read = read
        self.position = start
        self.failed = False
        self._datasets = _datasets(read, start, workers, prefetch)
        self._workers = workers
        self._iterators: list[Any] = []
        self._first: list[Future[ReadBatch]] = []
        self._turn = 0

    def next(self) -> ReadBatch:
        """Raises what ``read`` raised, in whatever process."""
        try:
            if not self._iterators:
                self._start()
            batch = self._first.pop(0).result() if self._first else next(self._iterators[self._turn])
        except BaseException:
            self.failed = True
            raise
        if self._workers:
            for array in batch[:2]:
                _shared[id(array)] = array
        self._turn = (self._turn + 1) % len(self._iterators)
        self.position += 1
        return batch

    def close(self) -> None:
        """End the workers, all at the same time."""
        self.failed = True
        self._first.clear()
        iterators, self._iterators = self._iterators, []
        threads = [threading.Thread(target=iterator.close) for iterator in iterators]
        for thread, iterator in zip(threads, iterators, strict=True):
            try:
                thread.start()
            except RuntimeError:  # the process ends; newer Pythons start no threads then
                iterator.close()
        for thread in threads:
            if thread.ident is not None:
                thread.join()

    def _start(self) -> None:
        self._iterators = [iter(dataset) for dataset in self._datasets]
        if self._workers:
            _streams.add(self)
            resource_tracker.ensure_running()  # which would unblock signals if it started later
            # A thread of its own, which passes its blocked signals on, while this one can still be interrupted.
            with ThreadPoolExecutor(1) as thread:
                self._first = thread.submit(_first_of_each, self._iterators).result()


#: What the end of the process has to see to: streams with workers, and arrays in shared memory that somebody has.
_streams: weakref.WeakSet[BatchStream] = weakref.WeakSet()
_shared: weakref.WeakValueDictionary[int, Any] = weakref.WeakValueDictionary()


@atexit.register
def _end_with_process() -> None:
    """End the workers, and give up the memory of batches that a script still has, which would be called leaked."""
    for stream in list(_streams):
        stream.close()
    grains = getattr(sys.modules.get("grain._src.python.ipc.shared_memory_array"), "SharedMemoryArray", None)
    if deleting := getattr(grains, "_del_thread_pool", None):
        deleting.apply(int)  # its one thread has then given up all that was deleted so far
    for array in list(_shared.values()):
        memory = getattr(array, "shm", None)
        if memory is not None and getattr(array, "_unlink_on_del", False):
            memory.unlink()
            # Never deleted: grain's __del__ needs modules that are gone when the last arrays are.
            ctypes.pythonapi.Py_IncRef(ctypes.py_object(array))


def usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _datasets(read: Callable[[int], ReadBatch], start: int, workers: int, prefetch: int) -> list[Any]:
    """One for each worker."""
    import grain
    from absl import flags

    if not flags.FLAGS.is_parsed():  # grain's own, which it asks for where processes begin
        flags.FLAGS.mark_as_parsed()
    grain.config.update("py_traceback_filtering", "off")  # it adds a sentence about itself to every message
    found = []
    for worker in range(max(workers, 1)):
        numbers = range(start + worker, start + 2**48, max(workers, 1))
        nothing_ahead = grain.ReadOptions(num_threads=0, prefetch_buffer_size=0)
        dataset = grain.MapDataset.source(numbers).map(read).to_iter_dataset(nothing_ahead)
        if workers:
            options = grain.MultiprocessingOptions(num_workers=1, per_worker_buffer_size=prefetch)
            dataset = dataset.mp_prefetch(options, worker_init_fn=_end_well)
        found.append(dataset)
    return found


def _first_of_each(iterators: list[Any]) -> list[Future[ReadBatch]]:
    """The first batches, or what was raised, by which time all workers have begun."""
    with _blocked_signals(), _without_main_module(), ThreadPoolExecutor(len(iterators)) as threads:
        first: list[Future[ReadBatch]] = [threads.submit(next, iterator) for iterator in iterators]
        wait(first)
    return first


def _end_well(worker: int, workers: int) -> None:
    """In a worker: it ends at once when it is done, and also when the main process was killed."""
    # Behind everything else that is done at the end: taking JAX apart would take a second.
    Finalize(None, os._exit, args=(0,), exitpriority=-100)
    parent = parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()


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
