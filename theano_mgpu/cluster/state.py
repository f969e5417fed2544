"""What a rank tells its watcher: memory that both have, written in a microsecond and without a system call."""

from __future__ import annotations

import mmap
import struct
import threading
import time
from typing import NamedTuple

__all__ = ["SIZE", "Mark", "State"]

SIZE = 4 * 4096
# How often it moved, step (-1: none yet), how many threads wait for other ranks, phase.
_MARK = struct.Struct("<QqB47s")
_GOODBYE, _FAILED, _RUN, _ERROR = 64, 72, 128, 4096
_SECONDS = struct.Struct("<d")
_LENGTH = struct.Struct("<I")


class Mark(NamedTuple):
    """Where a rank is. ``moves`` grows with every mark; ``waits``: for other ranks, right now."""

    moves: int
    step: int
    waits: bool
    phase: str


class State:
    """As the rank writes it and the watcher reads it, in a file of ``SIZE`` bytes; without one nobody else reads it."""

    def __init__(self, descriptor: int = -1) -> None:
        self._memory = mmap.mmap(descriptor, SIZE)
        self._moves, self._step, self._phase, self._waiting = 0, -1, b"start", 0
        self._one_at_a_time = threading.Lock()

    def at(self, step: int | None, phase: str | None, run: str | None) -> None:
        """The rank goes on, to this step and this phase of it; None: where it was."""
        if step is not None:
            self._step = step
        if phase is not None:
            self._phase = phase.encode()
        if run is not None:
            self._write(_RUN, run, _ERROR - _RUN)
        self._mark()

    def waits(self, begin: bool) -> None:
        """A thread of the rank begins to wait for other ranks, or ends to."""
        with self._one_at_a_time:
            self._waiting += 1 if begin else -1
        self._mark()

    def fails(self, error: str) -> None:
        """The rank ends by an exception."""
        _SECONDS.pack_into(self._memory, _FAILED, time.monotonic())
        self._write(_ERROR, error, SIZE - _ERROR)

    def says_goodbye(self) -> None:
        """The rank's program is at its end."""
        self._memory[_GOODBYE] = 1

    @property
    def mark(self) -> Mark:
        """Where the rank is. One mark: it is read until two readings are the same."""
        before, now = b"", self._memory[: _MARK.size]
        while before != now:
            before, now = now, self._memory[: _MARK.size]
        moves, step, waiting, phase = _MARK.unpack(now)
        return Mark(moves, step, waiting > 0, phase.rstrip(b"\0").decode(errors="replace"))

    @property
    def run(self) -> str:
        return self._read(_RUN)

    @property
    def error(self) -> str:
        return self._read(_ERROR)

    @property
    def failed(self) -> float:
        """When it ended by that error, by this machine's ``time.monotonic``."""
        return float(_SECONDS.unpack_from(self._memory, _FAILED)[0])

    @property
    def goodbye(self) -> bool:
        return self._memory[_GOODBYE] == 1

    def _mark(self) -> None:
        self._moves += 1
        _MARK.pack_into(self._memory, 0, self._moves, self._step, self._waiting, self._phase)

    def _write(self, place: int, text: str, room: int) -> None:
        written = text.encode(errors="backslashreplace")[: room - _LENGTH.size]
        start = place + _LENGTH.size
        self._memory[start : start + len(written)] = written
        # Last: whoever reads a length finds the text.
        _LENGTH.pack_into(self._memory, place, len(written))

    def _read(self, place: int) -> str:
        (length,) = _LENGTH.unpack_from(self._memory, place)
        start = place + _LENGTH.size
        return self._memory[start : start + length].decode(errors="replace")
