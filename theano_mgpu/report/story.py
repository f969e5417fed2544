"""What happened in a run, in words and figures."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from theano_mgpu.report.run_files import Run
from theano_mgpu.report.series import evaluation_names, number
from theano_mgpu.training import time_split

__all__ = ["Best", "best_of", "duration", "ending", "figures", "headline", "training_seconds"]

_ENDINGS = {
    "epochs": "It finished: all the epochs that were asked for.",
    "max_steps": "It finished: all the steps that were asked for.",
    "patience": "It ended early: the evaluations had stopped getting better.",
    "callback": "It was ended by a callback.",
}


@dataclass(frozen=True)
class Best:
    """The best evaluation by a metric, and the last one."""

    key: str
    value: float
    step: int
    epoch: float | None
    last: float


def best_of(lines: Sequence[Mapping[str, Any]]) -> Best | None:
    """By the first evaluation's top-1, else by its loss; None where nothing was evaluated."""
    for metric, sign in (("top1", 1), ("loss", -1)):
        for name in evaluation_names(lines, metric):
            key = f"{name}_{metric}"
            measured = [(value, line) for line in lines if (value := number(line.get(key))) is not None]
            if measured:
                value, line = max(measured, key=lambda pair: sign * pair[0])
                return Best(key, value, line["step"], number(line.get("epoch")), measured[-1][0])
    return None


def headline(run: Run) -> str:
    """One or two sentences: how good it is, and how it ended."""
    best = best_of(run.lines)
    if not run.lines:
        return f"No line of metrics has been written yet. {ending(run)}"
    if best is None:
        loss = next((value for line in reversed(run.lines) if (value := number(line.get("loss"))) is not None), None)
        said = "" if loss is None else f"The training loss is {loss:.3f}. "
        return f"{said}Nothing was evaluated. {ending(run)}"
    name, _, metric = best.key.rpartition("_")
    at = f"step {best.step:,}" if best.epoch is None else f"epoch {best.epoch:g}"
    what = "Top-1" if metric == "top1" else "Loss"
    if best.last == best.value:
        said = f"{what} on “{name}” is {_value(metric, best.last)}, the best of the run."
    else:
        said = f"{what} on “{name}” is {_value(metric, best.last)}; the best was {_value(metric, best.value)} at {at}."
    return f"{said} {ending(run)}"


def ending(run: Run) -> str:
    """How the run ended, or that it goes on."""
    if run.last is not None:
        return _ENDINGS.get(str(run.last.get("stopped_by")), "It finished.")
    if run.going_on:
        return "It is still going on."
    if run.going_on is None:
        return f"It may still be going on ({run.process}), or was killed there."
    if run.process:
        return f"It was killed ({run.process}) and may go on from its last checkpoint."
    return "It was stopped before its end and may go on from its last checkpoint."


def figures(run: Run) -> list[tuple[str, str]]:
    """(name, value) of what one asks first."""
    if not run.lines:
        return []
    found, best, last = [], best_of(run.lines), run.lines[-1]
    if best is not None:
        name, _, metric = best.key.rpartition("_")
        spoken = f"{name} {metric.replace('top1', 'top-1')}"
        found += [(f"best {spoken}", _value(metric, best.value)), (f"last {spoken}", _value(metric, best.last))]
    epoch, seconds = number(last.get("epoch")), training_seconds(run.lines)
    found.append(("steps", f"{last['step']:,}"))
    found += [("epochs", f"{epoch:.4g}")] if epoch is not None else []
    speeds = [speed for line in run.lines if (speed := number(line.get("images_per_s"))) is not None]
    if speeds:
        speed = statistics.median(speeds)
        found.append(("images/s, median", f"{speed:,.1f}" if speed < 100 else f"{speed:,.0f}"))
    found += [("in training steps", duration(seconds))] if seconds else []
    return found


def training_seconds(lines: Sequence[Mapping[str, Any]]) -> float:
    """How long the steps took together, waiting included, and evaluations not."""
    total, before = 0.0, 0
    for line in lines:
        total += sum(time_split(line).values()) * (line["step"] - before)
        before = line["step"]
    return total


def duration(seconds: float) -> str:
    """In two units: "42 s", "3 min 20 s", "5 h 07 min"."""
    if seconds < 60:
        return f"{seconds:.0f} s" if seconds >= 10 else f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    if minutes < 60:
        return f"{minutes} min {rest:02} s"
    hours, minutes = divmod(round(seconds / 60), 60)
    return f"{hours} h {minutes:02} min"


def _value(metric: str, value: float) -> str:
    return f"{100 * value:.1f} %" if metric == "top1" else f"{value:.3f}"
