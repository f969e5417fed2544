"""What ranks tell each other: small objects, and arrays straight from and into their memory."""

from __future__ import annotations

import atexit
import os
import pickle
import socket
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from theano_mgpu.cluster.state import State
from theano_mgpu.errors import RankError

__all__ = ["Cluster", "Told", "together"]

# One message of a small object; a longer one takes a second.
_SMALL = 512
# Seconds since the last message in which a rank looks again at once; then it leaves its core to who computes. With more
# ranks on a host than cores, who waits is in the way of who computes.
_EAGER, _EAGER_WITHOUT_OWN_CORE = 0.005, 0.0001
_NAP = 0.0001
# A note on an error that the other ranks know of.
_TOLD = "the other ranks were told."


@contextmanager
def together(cluster: Cluster | None, doing: str, **options: Any) -> Iterator[Told]:
    """``Cluster.together``, of one process that is alone too: all that it tells is told by itself."""
    if cluster is not None:
        with cluster.together(doing, **options) as told:
            yield told
    else:
        told = Told()
        yield told
        told.everyone = [told.own]


@dataclass(frozen=True)
class _Offer:
    """What other ranks may ask for, and how often it was put there anew."""

    array: np.ndarray = field(default_factory=lambda: np.empty(0))
    turn: int = 0


@dataclass
class Told:
    """What a rank tells the others at the end of something that all do, and then what each has told."""

    own: Any = None
    everyone: list[Any] = field(default_factory=list)


class Cluster:
    """This process, ``rank`` of ``size``, on ``host``. Every method is called by all ranks, in the same order.

    Warns where MPI's thread level is below ``multiple``. Where MPI can be called by one thread alone, the methods raise
    RuntimeError in others.
    """

    def __init__(self, communicator: Any, status: Any) -> None:
        self._communicator = communicator
        self._state = State()
        self.rank: int = communicator.Get_rank()
        self.size: int = communicator.Get_size()
        self.host = socket.gethostname()
        self._thread_level, self._is_main_thread = _one_thread_only()
        #: What this rank has sent to others so far.
        self.bytes_sent = 0
        self._in_a_run = False
        # What ranks ask each other for at any time has messages of its own.
        self._questions, self._answers = communicator.Dup(), communicator.Dup()
        self._offered: list[_Offer] = []
        self._asked: list[tuple[int, int, int]] = []  # by whom, of which offer, since which turn
        self._answering: list[Any] = []
        self._status: Any = status
        self._eager = _EAGER
        neighbours = self.gathered(self.host).count(self.host)
        if neighbours > (os.cpu_count() or 1):
            self._eager = _EAGER_WITHOUT_OWN_CORE
        atexit.register(self._serve_until_all_end)

    def watched(self, state: State) -> None:
        """From here on this rank writes there where it is."""
        self._state = state

    def at(
        self, step: int | None = None, phase: str | None = None, run: str | None = None, *, call: int | None = None
    ) -> None:
        """Say where this rank is, for the sentence if it dies or hangs: which step, which phase of it ("computing").

        ``run`` is the run's folder, once known, and from then on its steps count; before, a step's ``call``. Two
        microseconds; what is not given stays as it was.
        """
        self._in_a_run = self._in_a_run or run is not None
        self._state.at(call if step is None and not self._in_a_run else step, phase, run)

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

    @contextmanager
    def together(
        self, what: str, is_out_of_memory: Callable[[Exception], bool] = lambda error: False
    ) -> Iterator[Told]:
        """A block that succeeds on all ranks or fails on all: at its end each learns how it went for the others.

        Raises what the block raised, and RankError where it did so on another rank only. ``what`` says what was done,
        as in "while it computed step 3". Within another such block nothing is told twice: what ended the inner one ends
        the outer one on all ranks.
        """
        told = Told()
        try:
            yield told
        except Exception as error:
            if not isinstance(error, RankError) and not _is_told(error):
                self.gathered((f"{type(error).__name__}: {error}", is_out_of_memory(error)))
                error.add_note(f"Raised on rank {self.rank} ({self.host}); {_TOLD}")
            raise
        answers = self.gathered((None, told.own))
        for rank, (failure, out_of_memory) in enumerate(answers):
            if failure is not None:
                raise RankError(
                    f"rank {rank} failed {what}, so that the other ranks cannot go on; no parameter was changed. "
                    f"There it was {failure}",
                    rank,
                    out_of_memory=out_of_memory,
                )
        told.everyone = [answer for _, answer in answers]

    def from_first(self, value: Any) -> Any:
        """What rank 0 gives, on all ranks; the others' values do not count."""
        self._require_thread()
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
        self._require_thread()
        self.bytes_sent += array.nbytes
        return self._communicator.Isend(_bytes_of(array), to, tag)

    def receive(self, array: np.ndarray, source: int, tag: int = 0) -> Any:
        """Begin to receive into contiguous memory; a request for ``wait``."""
        self._require_thread()
        return self._communicator.Irecv(_bytes_of(array), source, tag)

    def offer(self) -> int:
        """A number under which other ranks may ask for an array of this one, the same on all."""
        self._offered.append(_Offer())
        return len(self._offered) - 1

    def put_on_offer(self, number: int, array: np.ndarray) -> None:
        """What other ranks get of this one from now on. They are served whenever this rank waits."""
        self._offered[number] = _Offer(array, self._offered[number].turn + 1)

    def fetch(self, number: int, into: Mapping[int, np.ndarray]) -> None:
        """Other ranks' arrays of that offer, each into memory of its size; this rank alone may ask for it.

        They are of the same turn as this rank's own: who has not put it on offer yet answers as soon as it has.
        """
        question = np.array([number, self._offered[number].turn], np.int64)
        self._require_thread()
        requests = []
        for rank, memory in into.items():
            if rank != self.rank and memory.size:
                requests.append(self._answers.Irecv(_bytes_of(memory), rank, number))
                requests.append(self._questions.Isend(question, rank))
        self.wait(requests)

    def wait(self, requests: Sequence[Any]) -> None:
        """Until all are done. Ranks may share cores, so who waits long makes way for who computes."""
        if not requests:
            return
        test_some = type(requests[0]).Testsome
        requests = list(requests)
        left, since, waits = len(requests), time.perf_counter(), False
        try:
            while left:
                if done := test_some(requests):
                    left, since = left - len(done), time.perf_counter()
                    if waits:
                        self._state.waits(waits := False)
                    continue
                self._serve()
                if time.perf_counter() - since > self._eager:
                    if not waits:
                        self._state.waits(waits := True)
                    time.sleep(_NAP)
                else:
                    os.sched_yield()
        finally:
            if waits:
                self._state.waits(False)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside, this thread needs other ranks to go on, as its watcher then knows. ``wait`` says so by itself."""
        self._state.waits(True)
        try:
            yield
        finally:
            self._state.waits(False)

    def _serve(self) -> None:
        """Answer what other ranks have asked for."""
        while self._questions.Iprobe(status=self._status):
            question = np.empty(2, np.int64)
            self._questions.Recv(question, self._status.Get_source())
            self._asked.append((self._status.Get_source(), int(question[0]), int(question[1])))
        for asked in list(self._asked):
            rank, number, turn = asked
            if self._offered[number].turn >= turn:
                self._asked.remove(asked)
                offered = self._offered[number].array
                self.bytes_sent += offered.nbytes
                self._answering.append(self._answers.Isend(_bytes_of(offered), rank, number))
        if self._answering:
            self._answering = [answer for answer in self._answering if not answer.Test()]

    def _serve_until_all_end(self) -> None:
        # Not among the messages of a step: a rank that ends early would be taken to answer there, with nothing.
        self.wait([self._answers.Ibarrier()])
        self.wait(self._answering)

    def _require_thread(self) -> None:
        if self._thread_level is not None and not self._is_main_thread():
            raise RuntimeError(
                f"a step in thread {threading.current_thread().name!r}, but MPI gives thread level "
                f"{self._thread_level}: only the main thread may talk to other ranks. Call steps there, or take away "
                f"what limits MPI (MPI4PY_RC_THREAD_LEVEL in the environment, or the library)."
            )

    def _all_gathered(self, data: np.ndarray) -> np.ndarray:
        self._require_thread()
        self.bytes_sent += data.nbytes * (self.size - 1)
        rows = np.empty((self.size, data.size), np.uint8)
        self.wait([self._communicator.Iallgather(data, rows)])
        return rows


def _is_told(error: Exception) -> bool:
    return any(note.endswith(_TOLD) for note in getattr(error, "__notes__", ()))


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
