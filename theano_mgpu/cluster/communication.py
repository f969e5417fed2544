"""What ranks tell each other: small objects, and arrays straight from and into their memory."""

from __future__ import annotations

import os
import pickle
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from theano_mgpu.cluster.state import State

__all__ = ["Cluster"]

# One message of a small object; a longer one takes a second.
_SMALL = 512
# Seconds of waiting in which a rank looks again at once; then it leaves its core to ranks that compute.
_EAGER = 0.001
_NAP = 0.00005


class Cluster:
    """This process, ``rank`` of ``size``, on ``host``. Every method is called by all ranks, in the same order."""

    def __init__(self, communicator: Any) -> None:
        self._communicator = communicator
        self._state: State | None = None
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        self.host = socket.gethostname()

    def watched(self, state: State | None) -> None:
        """From here on this rank writes there where it is; None: nowhere."""
        self._state = state

    def at(self, step: int | None = None, phase: str | None = None, run: str | None = None) -> None:
        """Say where this rank is, for the sentence if it dies or hangs: which step, which phase of it ("computing").

        ``run`` is the run's folder, once known. A microsecond; what is not given stays as it was.
        """
        if self._state is not None:
            self._state.at(step, phase, run)

    def gathered(self, value: Any) -> list[Any]:
        """What each rank gives, any object that can be pickled, by rank, on all of them."""
        message = pickle.dumps(value)
        mine = np.zeros(_SMALL, np.uint8)
        mine[:8].view(np.int64)[0] = len(message)
        short = np.frombuffer(message, np.uint8)[: _SMALL - 8]
        mine[8 : 8 + len(short)] = short
        everyone = self._all_gathered(mine)
        lengths = everyone[:, :8].copy().view(np.int64)[:, 0]
        if lengths.max() <= _SMALL - 8:
            return [pickle.loads(row[8 : 8 + length]) for row, length in zip(everyone, lengths, strict=True)]
        padded = np.zeros(int(lengths.max()), np.uint8)
        padded[: len(message)] = np.frombuffer(message, np.uint8)
        return [pickle.loads(row[:length]) for row, length in zip(self._all_gathered(padded), lengths, strict=True)]

    def from_first(self, value: Any) -> Any:
        """What rank 0 gives, on all ranks; the others' values do not count."""
        message = pickle.dumps(value) if self.rank == 0 else b""
        length = np.array([len(message)], np.int64)
        self.wait([self._communicator.Ibcast(length, 0)])
        data = np.empty(int(length[0]), np.uint8)
        if self.rank == 0:
            data[:] = np.frombuffer(message, np.uint8)
        self.wait([self._communicator.Ibcast(data, 0)])
        return pickle.loads(data)

    def all_gathered(self, array: np.ndarray) -> np.ndarray:
        """(ranks, *shape): every rank's array, of one shape and dtype on all."""
        array = np.ascontiguousarray(array)
        rows = self._all_gathered(array.reshape(-1).view(np.uint8))
        return rows.reshape(-1).view(array.dtype).reshape(self.size, *array.shape)

    def send(self, array: np.ndarray, to: int, tag: int = 0) -> Any:
        """Begin to send contiguous memory; a request for ``wait``, until when the memory must stay as it is."""
        return self._communicator.Isend(_bytes_of(array), to, tag)

    def receive(self, array: np.ndarray, source: int, tag: int = 0) -> Any:
        """Begin to receive into contiguous memory; a request for ``wait``."""
        return self._communicator.Irecv(_bytes_of(array), source, tag)

    def wait(self, requests: Sequence[Any]) -> None:
        """Until all are done. Ranks may share cores, so who waits long makes way for who computes."""
        if not requests:
            return
        test_all = type(requests[0]).Testall
        requests = list(requests)
        begun = time.perf_counter()
        while not test_all(requests):
            if time.perf_counter() - begun > _EAGER:
                break
            os.sched_yield()
        else:
            return
        with self.waiting():
            while not test_all(requests):
                time.sleep(_NAP)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, this thread needs other ranks to go on, as it says to its watcher. ``wait`` says so by itself."""
        if self._state is None:
            yield
            return
        self._state.waits(True)
        try:
            yield
        finally:
            self._state.waits(False)

    def _all_gathered(self, data: np.ndarray) -> np.ndarray:
        rows = np.empty((self.size, data.size), np.uint8)
        self.wait([self._communicator.Iallgather(data, rows)])
        return rows


def _bytes_of(array: np.ndarray) -> np.ndarray:
    return array.reshape(-1).view(np.uint8)
