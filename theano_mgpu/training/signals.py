"""SIGTERM and SIGINT are asked of between two steps, so that a run ends with its state saved."""

from __future__ import annotations

import os
import signal
import threading
from types import FrameType, TracebackType
from typing import Any

__all__ = ["Interrupted", "StopSignals"]

_SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Interrupted(SystemExit):
    """A run was stopped by a signal, and saved; left alone, it ends the process with ``128 + signal`` as its status.

    ``sentence`` says how to go on.
    """

    def __init__(self, received: signal.Signals, sentence: str) -> None:
        super().__init__(128 + received)
        self.signal = received
        self.sentence = sentence

    def __str__(self) -> str:
        return self.sentence


class StopSignals:
    """Inside a ``with`` block SIGTERM and SIGINT end nothing by themselves; ``received`` says that one came.

    A second one does what it would have done without us. Only Python's main thread can be asked by the system: in
    another thread nothing is received, and signals do what they always did.

    says: whether a line on standard error says that one came; under mpirun rank 0's is enough.
    """

    def __init__(self, *, says: bool = True) -> None:
        self._says = says
        self.received: signal.Signals | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            self._before = {number: signal.signal(number, self._receive) for number in _SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._let_go()

    def _receive(self, number: int, frame: FrameType | None) -> None:
        self.received = signal.Signals(number)
        self._let_go()
        if not self._says:
            return
        # Not print: the signal may have come in the middle of one.
        os.write(2, f"\n{self.received.name}: finishing the step, then saving. Once more stops at once.\n".encode())

    def _let_go(self) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler if handler is not None else signal.SIG_DFL)
        self._before = {}
