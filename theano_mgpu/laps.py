"""Where the seconds of a step's call go: a stopwatch whose laps follow one another, so that they sum to the call."""

from __future__ import annotations

import time

__all__ = ["PARTS", "Laps"]

#: What a call's time is divided into; ``Step.seconds`` says what each is.
PARTS = ("copy", "compute", "gather", "update")


class Laps:
    """Seconds of one call by parts. All the time since the lap before belongs to the part that ends."""

    def __init__(self) -> None:
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._since = 0.0

    def begin(self) -> None:
        """A new call."""
        self._seconds = dict.fromkeys(PARTS, 0.0)
        self._since = time.perf_counter()

    def end(self, part: str) -> None:
        """A lap of ``part`` ends now, and the next one begins. Takes 0.2 us."""
        now = time.perf_counter()
        self._seconds[part] += now - self._since
        self._since = now

    @property
    def total(self) -> float:
        """Of the laps that have ended."""
        return sum(self._seconds.values())

    @property
    def seconds(self) -> dict[str, float]:
        """The caller's own copy."""
        return dict(self._seconds)
