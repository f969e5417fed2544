"""From what all watchers see: whether a rank died or hangs, and the sentence that says so. No clocks and no sockets."""

from __future__ import annotations

import shlex
import signal
from collections.abc import Sequence
from typing import NamedTuple

__all__ = ["LIMIT_VARIABLE", "SILENCE", "Report", "finished", "sentence"]

LIMIT_VARIABLE = "THEANO_MGPU_RANK_TIMEOUT"
# Seconds without a word from a host until it counts as lost.
SILENCE = 60.0
# Seconds until it is known who was killed first, all killed by a person or a batch system are, and other ranks have had
# the same exception. Not more: Open MPI's mpirun listens for a quarter of a second after a rank's end.
_SETTLES: dict[int, float] = {signal.SIGKILL: 0.1, signal.SIGTERM: 3.0, signal.SIGINT: 3.0, signal.SIGHUP: 3.0}
_SAME_EXCEPTION = 0.3
# Seconds in which what a rank has sent before its end arrives.
_ARRIVES = 5.0
# Signals by which a person or a batch system ends a run, all ranks alike.
_ASKED = {signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


class Report(NamedTuple):
    """One rank, as its watcher sees it."""

    rank: int
    host: str
    process: int
    step: int = -1
    phase: str = "start"
    run: str = ""
    waits: float = 0.0
    """Seconds it has waited for other ranks, running, without a move."""
    still: float = 0.0
    """Seconds without a move, whatever the reason."""
    stopped: bool = False
    """By SIGSTOP, or a debugger."""
    error: str = ""
    goodbye: bool = False
    """Its program is at its end."""
    gone: bool = False
    """There is no such process any more."""
    status: int | None = None
    """What it left to its parent, as ``os.wait`` gives it; None where it is not known."""
    when: float = 0.0
    """When ``error`` or ``gone`` was seen, by the hub's clock."""
    silent: float = 0.0
    """Seconds without a word from the watcher."""
    lost: bool = False
    """The watcher's connection broke before its rank was gone."""


def sentence(reports: Sequence[Report], size: int, now: float, limit: float) -> str | None:
    """Why the run cannot go on and what to do; None where it can, or where it is too early to say.

    ``reports`` are of the ranks that were ever heard of, of ``size``. ``limit`` is in seconds.
    """
    why = _who_ended(reports, now) or _who_hangs(reports, size, limit) or _who_left(reports, size)
    if why is None:
        return None
    run = next((report.run for report in reports if report.run), "")
    go_on = (
        "The run goes on from its last whole checkpoint, on any number of ranks, by: "
        f"theano-mgpu train --resume {shlex.quote(run)}"
        if run
        else "A run that saved checkpoints goes on from the last whole one, on any number of ranks."
    )
    return f"theano_mgpu: {why}\nAll ranks are stopped. {go_on}"


def finished(reports: Sequence[Report]) -> bool:
    """All ranks are gone, and as they should be."""
    return all(r.gone and not r.error and (_at_its_end(r) or _was_asked(r)) for r in reports)


def _who_ended(reports: Sequence[Report], now: float) -> str | None:
    ends = [r for r in reports if r.error or r.lost or r.silent > SILENCE or (r.gone and not _at_its_end(r))]
    if not ends:
        return None
    first = min(ends, key=lambda report: (_follows(report), report.when))
    if now - first.when < (_SAME_EXCEPTION if first.error else _SETTLES.get(_signal(first) or 0, 0.0)):
        return None
    if _was_asked(first) and all(_was_asked(r) or _at_its_end(r) for r in reports):
        return None  # by a person or a batch system: all of them
    alike = [r for r in ends if first.error and r.error.split("\n")[0] == first.error.split("\n")[0]]
    if len(alike) > 1:
        return f"{_ranks(alike)} ended by the same exception{_place(first)}: {first.error}"
    if first.error:
        return f"{_name(first)} ended by an exception{_place(first)}: {first.error}"
    if first.gone:
        return f"{_name(first)} {_end(first)}{_place(first)}."
    if first.lost:
        return f"{_name(first)} and its watcher were ended at once, or its host was{_place(first)}."
    return f"{_name(first)} has not been heard of for {SILENCE:.0f} s{_place(first)}: its host or the network is down."


def _who_hangs(reports: Sequence[Report], size: int, limit: float) -> str | None:
    waiting = [r for r in reports if r.waits >= limit and not r.goodbye]
    if not waiting:
        return None
    example = waiting[0]
    raise_it = f"Where that is no fault, set {LIMIT_VARIABLE} to more than its {limit:g} seconds."
    still = [r for r in reports if (r.stopped or not r.waits) and r.still >= limit and not r.goodbye]
    if still:
        one = max(still, key=lambda report: (report.stopped, report.still))
        how = "has been stopped (by SIGSTOP, or a debugger)" if one.stopped else "has not moved"
        return (
            f"{_name(one)} {how} for {one.still:.0f} s{_place(one)}, and {_name(example)} waits for it"
            f"{_place(example)}. {raise_it}"
        )
    if len(waiting) < size:
        return None  # somebody moves, or has left
    places = {_place(r): [o for o in waiting if _place(o) == _place(r)] for r in waiting}
    if len(places) == 1:
        return f"all {size} ranks have waited for each other for {example.waits:.0f} s{_place(example)}. {raise_it}"
    where = ", ".join(f"{_ranks(ranks)}{place}" for place, ranks in places.items())
    return f"ranks have waited for each other at different places for {example.waits:.0f} s: {where}. {raise_it}"


def _who_left(reports: Sequence[Report], size: int) -> str | None:
    left = [r for r in reports if r.goodbye or r.gone]
    others = [r for r in reports if not (r.goodbye or r.gone)]
    if not left or not others or len(reports) < size or min(r.waits for r in others) < _ARRIVES:
        return None
    return (
        f"{_name(left[0])} {_end(left[0])}{_place(left[0])}, while {_name(others[0])} waits for it{_place(others[0])}. "
        f"Every rank must take the same steps."
    )


def _at_its_end(report: Report) -> bool:
    """It ended by itself; the launcher says what was wrong with its status."""
    return report.goodbye and not _signal(report)


def _was_asked(report: Report) -> bool:
    return _signal(report) in _ASKED


def _signal(report: Report) -> int | None:
    """The number of the signal that ended it, 0 where none did; None where there is no knowing, or it has not ended."""
    return None if not report.gone or report.status is None else report.status & 0x7F


def _follows(report: Report) -> bool:
    """Perhaps because another rank ended: launchers then end all by these signals, and RankError is of another rank."""
    return _signal(report) in {signal.SIGKILL, signal.SIGTERM} or "RankError: " in report.error.split("\n")[0]


def _end(report: Report) -> str:
    if report.status is None:
        return "reached its end" if report.goodbye else "was killed, or left without ending Python,"
    number = _signal(report)
    if number == signal.SIGKILL:
        return "was killed by SIGKILL (where nobody did, by the system for want of memory)"
    if number:
        return f"was ended by signal {number} ({signal.strsignal(number)})"
    status = report.status >> 8
    return f"ended with status {status}" + ("" if report.goodbye else ", without ending Python,")


def _name(report: Report) -> str:
    return f"rank {report.rank} (host {report.host}, process {report.process})"


def _ranks(reports: Sequence[Report]) -> str:
    return f"rank{'s' if len(reports) > 1 else ''} {', '.join(str(r.rank) for r in reports)}"


def _place(report: Report) -> str:
    return (f" in step {report.step}" if report.step >= 0 else " before its first step") + f" ({report.phase})"
