"""What ranks tell each other: small objects, and arrays straight from and into their memory."""

from __future__ import annotations

import os
import pickle
import socket
import threading
import time
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

__all__ = ["Cluster"]

# One message of a small object; a longer one takes a second.
_SMALL = 512
# Seconds of waiting in which a rank looks again at once; then it leaves its core to ranks that compute.
_EAGER = 0.001
_NAP = 0.00005


class Cluster:
    """This process, ``rank`` of ``size``, on ``host``. Every method is called by all ranks, in the same order.

    Warns where MPI's thread level is below ``multiple``. Where MPI can be called by one thread alone, the methods raise
    RuntimeError in others.
    """

    def __init__(self, communicator: Any) -> None:
        self._all_ranks = communicator
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        self.host = socket.gethostname()
        self._thread_level, self._is_main_thread = _one_thread_only()

    @property
    def _communicator(self) -> Any:
        if self._thread_level is not None and not self._is_main_thread():
            raise RuntimeError(
                f"a step in thread {threading.current_thread().name!r}, but MPI gives thread level "
                f"{self._thread_level}: only the main thread may talk to other ranks. Call steps there, or take away "
                f"what limits MPI (MPI4PY_RC_THREAD_LEVEL in the environment, or the library)."
            )
        return self._all_ranks

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
        return pickle.loads(data.data)

    def all_gathered(self, array: np.ndarray) -> np.ndarray:
        """(ranks, *shape): every rank's array, of one shape and dtype on all."""
        rows = self._all_gathered(np.ascontiguousarray(array).reshape(-1).view(np.uint8))
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
                time.sleep(_NAP)
            else:
                os.sched_yield()

    def _all_gathered(self, data: np.ndarray) -> np.ndarray:
        rows = np.empty((self.size, data.size), np.uint8)
        self.wait([self._communicator.Iallgather(data, rows)])
        return rows


def _bytes_of(array: np.ndarray) -> np.ndarray:
    if not array.flags.c_contiguous:  # a copy would be sent, or received into and forgotten
        raise ValueError(f"an array of shape {array.shape} and strides {array.strides}: only contiguous memory travels")
    return array.reshape(-1).view(np.uint8)


def _one_thread_only() -> tuple[str | None, Callable[[], bool]]:
    """The thread level's name where MPI may be called by the thread alone that started it, and whether this is it.

    Warns where the level is below ``multiple``, which mpi4py asks for.
    """
    from mpi4py import MPI

    level = MPI.Query_thread()
    if level == MPI.THREAD_SERIALIZED:
        warnings.warn("MPI gives thread level serialized; no two threads may use it at once", RuntimeWarning, 4)
    if level >= MPI.THREAD_SERIALIZED:
        return None, MPI.Is_thread_main
    name = "single" if level == MPI.THREAD_SINGLE else "funneled"
    warnings.warn(f"MPI gives thread level {name}; steps run on the main thread only", RuntimeWarning, 4)
    return name, MPI.Is_thread_main
