"""The process beside each rank that outlives it: it sees its rank die or hang, and can still say so.

A launcher kills all ranks at once when one dies, so that none can tell what happened. A watcher is in a session of its
own, holds nothing of the rank's but its standard error, and ends soon after it. It imports nothing but the standard
library: it should be there at once, and small. Rank 0's watcher is the hub: the others report to it, it decides
(``verdicts``).
"""

from __future__ import annotations

import contextlib
import json
import os
import select
import signal
import socket
import struct
import sys
import time
from collections.abc import Iterable, Sequence
from typing import Any

from theano_mgpu.cluster.state import State
from theano_mgpu.cluster.verdicts import SILENCE, Report, finished, sentence

__all__ = ["main"]

# Seconds between two looks at the rank; the end of a process is seen at once where the system tells (Linux).
_TICK = 0.1
# Seconds between two words to the hub, and of the hub.
_BEAT = 1.0
# Seconds between two judgements of the hub: many ranks send many words.
_PAUSE = 0.02
# Seconds in which a watcher tries to reach the hub.
_PATIENCE = 30.0
# Bytes of one line: an error's text and a run's folder, escaped, have more than enough room.
_LONGEST = 2**18


def main() -> None:
    """Watch the parent process, as the task on the standard input says, until it is gone."""
    task = json.loads(sys.stdin.buffer.read())
    for asked_to_end in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
        signal.signal(asked_to_end, signal.SIG_IGN)  # sent to whole runs; the rank may still save
    watched = _Watched(task)
    with open(os.devnull, "wb") as nowhere:
        os.write(1, b".")  # the rank goes on
        os.dup2(nowhere.fileno(), 1)
    if task["rank"] == 0:
        _Hub(watched, task, socket.socket(fileno=task["listener"])).watch()
    elif connection := _connected(watched, task):
        _report_to_hub(watched, connection, task)
    else:
        _Hub(watched, task, None).watch()  # which still knows of its own rank


class _Watched:
    """The rank beside this process."""

    def __init__(self, task: dict[str, Any]) -> None:
        self.process: int = task["process"]
        self._names = {name: task[name] for name in ("rank", "host", "process")}
        self._state = State(task["memory"])
        self._status: int | None = None
        self._when = 0.0
        self._moves = -1
        self._looked = self._moved = self._running = time.monotonic()
        self._end: int | None = task["end"]
        self._stat: int | None = task["stat"]
        # Ranks whose files close, and when. Launchers kill all ranks of a host within microseconds of the first one's
        # end, and watchers may have to wait for a core: but what becomes ready first, epoll gives first. A pipe is
        # closed before its process is gone, and as files close the youngest first, before the launcher's own.
        self.closed: dict[int, float] = {}
        self._pipes = {descriptor: rank for rank, descriptor in task["pipes"]}
        self._closings = _closings_of(self._pipes) if self._pipes else None

    @property
    def gone(self) -> bool:
        return os.getppid() != self.process

    def wait(self, others: Sequence[int]) -> list[int]:
        """For a tick, the rank's end, or until something comes on one of the others: on which."""
        poll = select.poll()
        for descriptor in (self._closings, self._end, *others):
            if descriptor is not None:
                poll.register(descriptor, select.POLLIN)
        ready = [descriptor for descriptor, _ in poll.poll(_TICK * 1000)]
        if self._closings is not None:
            for descriptor, _ in self._closings.poll(0):
                self._closings.unregister(descriptor)
                self.closed[self._pipes[descriptor]] = time.monotonic()
        return [descriptor for descriptor in ready if descriptor in others]

    def report(self) -> Report:
        """The rank as it is now."""
        gone = self.gone
        letter, status = self._system_says()
        now = time.monotonic()
        mark, error, goodbye = self._state.mark, self._state.error, self._state.goodbye
        if gone and self._end is not None:
            self._status = _status_of_the_gone(self._end) if status is None else status
            os.close(self._end)
            self._end = None
        if (gone or error) and not self._when:
            self._when = self._state.failed if error else now
        stopped = letter in ("T", "t") and not gone
        if mark.moves != self._moves:
            self._moves, self._moved = mark.moves, now
            self._running = now
        if stopped or not mark.waits:
            self._running = now
        return Report(
            **self._names,
            step=mark.step,
            phase=mark.phase,
            run=self._state.run,
            waits=now - self._running,
            still=now - self._moved,
            stopped=stopped,
            error=error,
            goodbye=goodbye,
            gone=gone,
            status=self._status,
            when=self._when,
        )

    def kill(self) -> None:
        """End the rank, and the processes it started in its group: at once, it may be stopped or wait for the dead."""
        with contextlib.suppress(OSError):
            if not self.gone:
                alone = os.getpgid(self.process) != self.process
                (os.kill if alone else os.killpg)(self.process, signal.SIGKILL)

    def _system_says(self) -> tuple[str, int | None]:
        """The process's state (a letter) and, of one that has ended and was not yet waited for, its status."""
        if self._stat is None:
            return "", None
        try:
            fields = os.pread(self._stat, 4096, 0).rsplit(b")", 1)[1].split()
        except OSError:
            return "", None
        return fields[0].decode(), int(fields[49]) if fields[0] == b"Z" else None


def _closings_of(pipes: Iterable[int]) -> select.epoll:
    closings = select.epoll()
    for descriptor in pipes:
        closings.register(descriptor, select.EPOLLHUP)
    return closings


def _status_of_the_gone(pidfd: int) -> int | None:
    """What a process left to its parent, which has asked for it by now. Linux 6.15 or newer; elsewhere None."""
    asked_for = 1 << 3  # PIDFD_INFO_EXIT
    try:
        import fcntl

        # PIDFD_GET_INFO into a struct pidfd_info: mask, group, eleven numbers of the process and its users, exit_code.
        answer = struct.unpack("QQ11Ii", fcntl.ioctl(pidfd, 0xC040FF0B, struct.pack("Q56x", asked_for)))
    except (ImportError, OSError):
        return None
    return answer[-1] if answer[0] & asked_for else None


class _Hub:
    """The watcher that the others report to, and that speaks for all."""

    def __init__(self, watched: _Watched, task: dict[str, Any], listener: socket.socket | None) -> None:
        self._watched, self._task, self._listener = watched, task, listener
        self._reports: dict[int, Report] = {}
        self._heard: dict[int, float] = {}
        self._closed: dict[int, float] = {}
        self._behind: dict[int, float] = {}  # how far a watcher's clock is behind this one's
        self._lines: dict[int, _Lines] = {}
        self._names: dict[int, int] = {}  # file descriptor to rank

    def watch(self) -> None:
        begun = beaten = judged = time.monotonic()
        size = self._task["size"]
        told = self._listener is None
        while True:
            self._listen()
            if time.monotonic() - judged < _PAUSE:
                continue
            own = self._watched.report()
            judged = now = time.monotonic()
            self._reports[own.rank], self._heard[own.rank] = own, now
            self._closed |= self._watched.closed
            reports = [self._seen(rank, now) for rank in sorted(self._reports)]
            if why := sentence(reports, size, now, self._task["limit"]):
                _say(why)
                self._tell("stop")
                self._watched.kill()
                return
            if finished(reports):
                return
            if now - beaten > _BEAT:
                self._tell("beat")
                beaten = now
            if not told and now - begun > _PATIENCE and len(reports) < size:
                missing = sorted(set(range(size)) - set(self._reports))
                _say(
                    f"theano_mgpu: no word from the watchers of ranks {str(missing)[1:-1]}: if one of them dies or "
                    f"hangs, nobody says so. TCP connections to rank 0's host ({own.host}) must be allowed."
                )
                told = True

    def _seen(self, rank: int, now: float) -> Report:
        report = self._reports[rank]
        if not report.gone:
            return report._replace(silent=now - self._heard[rank])
        return report._replace(when=report.when if report.error else self._closed.get(rank, report.when))

    def _listen(self) -> None:
        listeners = [] if self._listener is None else [self._listener.fileno()]
        for descriptor in self._watched.wait([*listeners, *self._lines]):
            if descriptor in self._lines:
                self._receive(descriptor)
            elif self._listener is not None:
                with contextlib.suppress(OSError):
                    connection, _ = self._listener.accept()
                    connection.setblocking(False)
                    self._lines[connection.fileno()] = _Lines(connection)

    def _receive(self, descriptor: int) -> None:
        lines = self._lines[descriptor]
        try:
            for line in lines.received():
                self._understand(descriptor, json.loads(line))
        except (OSError, ValueError, KeyError, TypeError, RecursionError):  # closed, or nothing that a watcher says
            lines.connection.close()
            del self._lines[descriptor]
            rank = self._names.pop(descriptor, None)
            if rank is not None and not self._reports[rank].gone:
                lost = {"gone": True} if self._reports[rank].goodbye else {"lost": True, "when": time.monotonic()}
                self._reports[rank] = self._reports[rank]._replace(**lost)

    def _understand(self, descriptor: int, message: dict[str, Any]) -> None:
        if descriptor not in self._names and message["key"] != self._task["key"]:
            raise ValueError("not one of ours")
        now = time.monotonic()
        report = Report(*message["report"])
        # On one host all clocks are this one's. Elsewhere the quickest message comes closest.
        behind = 0.0 if report.host == self._task["host"] else now - message["now"]
        self._behind[report.rank] = behind = min(behind, self._behind.get(report.rank, behind))
        self._names[descriptor], self._heard[report.rank] = report.rank, now
        self._reports[report.rank] = report._replace(when=report.when + behind)
        self._closed |= {rank: when + behind for rank, when in message["closed"]}

    def _tell(self, word: str) -> None:
        for lines in self._lines.values():
            with contextlib.suppress(OSError):
                lines.connection.send(f"{word}\n".encode())


def _report_to_hub(watched: _Watched, connection: socket.socket, task: dict[str, Any]) -> None:
    lines = _Lines(connection)
    said: tuple[Any, ...] = ()
    spoke, heard = 0.0, time.monotonic()
    while True:
        ready = watched.wait([connection.fileno()])
        report = watched.report()
        closed = list(watched.closed.items())
        news = (report.error, report.goodbye, report.gone, closed)
        now = time.monotonic()
        try:
            if news != said or now - spoke > _BEAT:
                message = {"key": task["key"], "now": now, "report": report, "closed": closed}
                connection.sendall(json.dumps(message).encode() + b"\n")
                said, spoke = news, now
            if ready:
                heard = now
                if b"stop" in lines.received():
                    return watched.kill()
            if now - heard > SILENCE:
                raise OSError(f"has not been heard of for {SILENCE:.0f} s")
        except OSError as error:
            if not report.gone and task["rank"] in (1, task["size"] - 1):  # one of which may be on another host
                _say(f"theano_mgpu: rank 0's watcher (host {task['hub']}) is lost: {error}. All ranks are stopped.")
            return watched.kill()
        if report.gone:
            return None


def _connected(watched: _Watched, task: dict[str, Any]) -> socket.socket | None:
    begun = time.monotonic()
    while True:
        for address in task["addresses"]:
            with contextlib.suppress(OSError):
                connection = socket.create_connection((address, task["port"]), timeout=2)
                connection.settimeout(5)
                return connection
        if watched.gone or time.monotonic() - begun > _PATIENCE:
            return None
        time.sleep(_TICK)


class _Lines:
    """A connection on which lines come."""

    def __init__(self, connection: socket.socket) -> None:
        self.connection = connection
        self._rest = b""

    def received(self) -> list[bytes]:
        """The lines that have come whole; to be called when something has come. OSError at the connection's end."""
        data = self.connection.recv(65536)
        if not data or len(self._rest) > _LONGEST:
            raise ConnectionError("the connection was closed")
        *lines, self._rest = (self._rest + data).split(b"\n")
        return lines


def _say(text: str) -> None:
    with contextlib.suppress(OSError):  # mpirun itself may be gone
        os.write(2, f"\n{text}\n".encode(errors="backslashreplace"))
