"""A run's metrics: a file of one JSON object a line, means over steps, and where the seconds went."""

from __future__ import annotations

import errno
import itertools
import json
import math
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from theano_mgpu.laps import PARTS

__all__ = ["Means", "MetricsFile", "Stopwatch", "numbers_of"]

Result = TypeVar("Result")


class MetricsFile:
    """``metrics.jsonl``: lines are appended whole, and cut off behind the place where a resumed run goes on."""

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = Path(path)
        self._position: int | None = None

    @property
    def position(self) -> int:
        """The file's length in bytes, up to the last whole line."""
        if self._position is None:
            content = self.path.read_bytes() if self.path.exists() else b""
            self._position = content.rfind(b"\n") + 1
        return self._position

    def append(self, line: Mapping[str, Any]) -> None:
        """Write one line, over what may be left of one that was cut short. NaN and infinity become null.

        Raises OSError where the disk does not take it.
        """
        start = self.position
        content = json.dumps({key: _plain(value) for key, value in line.items()}, allow_nan=False).encode() + b"\n"
        try:
            self._write(content, start)
        except OSError as error:
            raise OSError(
                error.errno,
                f"a line of metrics could not be written to '{self.path}': {error.strerror}. The lines before it are "
                "whole. Make room, or let the file be written to; the run then goes on from its last checkpoint.",
            ) from error
        self._position = start + len(content)

    def _write(self, content: bytes, start: int) -> None:
        """In one write, past Python's buffer: a killed process leaves the whole line or a piece to write over."""
        descriptor = os.open(self.path, os.O_WRONLY | os.O_CREAT, 0o644)
        try:
            os.ftruncate(descriptor, start)
            if os.pwrite(descriptor, content, start) < len(content):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        finally:
            os.close(descriptor)

    def truncate(self, position: int) -> None:
        """Cut off what is behind ``position`` bytes; a file that is shorter stays as it is, up to its last line."""
        self._position = None
        self._position = min(self.position, position)
        if self.path.exists():
            os.truncate(self.path, self._position)

    def lines(self) -> list[dict[str, Any]]:
        """All whole lines, as dicts. Raises ValueError, naming file and line, for one that is no JSON."""
        if not self.path.exists():
            return []
        lines = self.path.read_bytes()[: self.position].split(b"\n")[:-1]
        return [self._parsed(number, line) for number, line in enumerate(lines, 1)]

    def _parsed(self, number: int, line: bytes) -> dict[str, Any]:
        try:
            return dict(json.loads(line))
        except (TypeError, ValueError) as error:
            raise ValueError(
                f"line {number} of '{self.path}' is no line of metrics, which are JSON objects: {line[:60]!r}. Delete "
                "the line, or the file if its curves are not needed: checkpoints do without it."
            ) from error


class Means:
    """Means of metrics over the examples of several steps; ``sums`` is all that it keeps."""

    def __init__(self, sums: Mapping[str, float] | None = None) -> None:
        self.sums: dict[str, float] = dict(sums or {})

    def add(self, values: Mapping[str, float], examples: int) -> None:
        """A step's means over ``examples`` examples."""
        for name, value in values.items():
            self.sums[name] = self.sums.get(name, 0.0) + value * examples
        self.sums["examples"] = self.sums.get("examples", 0.0) + examples

    def taken(self) -> dict[str, float]:
        """The means, and begin anew."""
        sums, self.sums = self.sums, {}
        examples = sums.pop("examples", 0.0)
        return {name: value / examples for name, value in sums.items()}


class Stopwatch:
    """Seconds by what they went into, over several calls."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.within: dict[str, float] = {}  # the steps
        self.of_ranks: list[float] = []
        self.examples = 0
        self.steps = 0

    def timed(self, part: str, function: Callable[..., Result], *arguments: Any) -> Result:
        """Call a function; the time it takes goes to ``part``."""
        start = time.perf_counter()
        try:
            return function(*arguments)
        finally:
            self.seconds[part] = self.seconds.get(part, 0.0) + time.perf_counter() - start

    def count(self, examples: int, seconds: Mapping[str, float] | None = None, of_ranks: Sequence[float] = ()) -> None:
        """A step is done; ``seconds`` are its own, such as ``step.seconds``, and ``of_ranks`` ``step.rank_seconds``."""
        self.examples += examples
        self.steps += 1
        for part, spent in (seconds or {}).items():
            self.within[part] = self.within.get(part, 0.0) + spent
        self.of_ranks = [
            before + spent for before, spent in itertools.zip_longest(self.of_ranks, of_ranks, fillvalue=0.0)
        ]

    def taken(self) -> dict[str, float | None]:
        """images/s, and mean seconds a step: of waiting for the batch, of the step, and of its parts; begin anew.

        The parts copy, compute, gather and update are None where no step gave its own seconds. Of several ranks
        there is what the fastest and the slowest took for their parts, "rank_seconds_min" and "rank_seconds_max", and
        which one the slowest was, "slowest_rank".
        """
        total, steps = sum(self.seconds.values()), max(self.steps, 1)
        taken: dict[str, float | None] = {
            "images_per_s": self.examples / total if total else None,
            "step_seconds": self.seconds.get("step", 0.0) / steps,
            "wait": self.seconds.get("wait", 0.0) / steps,
            **{part: self.within[part] / steps if part in self.within else None for part in PARTS},
        }
        if len(self.of_ranks) > 1:
            taken |= {"rank_seconds_min": min(self.of_ranks) / steps, "rank_seconds_max": max(self.of_ranks) / steps}
            taken["slowest_rank"] = int(np.argmax(self.of_ranks))
        self.seconds, self.within, self.of_ranks, self.examples, self.steps = {}, {}, [], 0, 0
        return taken


def numbers_of(outputs: Any) -> dict[str, float]:
    """A training step's outputs as numbers by name; a single one is the loss.

    Raises TypeError for a list, and for outputs that are no scalars.
    """
    if isinstance(outputs, (int, float, np.ndarray, np.generic)) and np.ndim(outputs) == 0:
        return {"loss": float(outputs)}
    if not isinstance(outputs, Mapping) or any(np.ndim(value) for value in outputs.values()):
        raise TypeError(
            "fit(): a step's outputs should be a dict of averages, such as {'loss': tm.average(loss)}, or the loss "
            f"alone, not {type(outputs).__name__}{_shapes(outputs)}."
        )
    return {name: float(value) for name, value in outputs.items()}


def _shapes(outputs: Any) -> str:
    values = outputs.values() if isinstance(outputs, Mapping) else outputs if isinstance(outputs, (list, tuple)) else ()
    return f" of shapes {', '.join(str(np.shape(value)) for value in values)}" if values else ""


def _plain(value: Any) -> Any:
    if isinstance(value, np.generic):
        value = value.item()
    return None if isinstance(value, float) and not math.isfinite(value) else value
