"""Times of several ways of doing the same, taken in turns, so that a slow minute slows all alike."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import TypeVar

__all__ = ["seconds_in_turns"]

Way = TypeVar("Way")


def seconds_in_turns(ways: Mapping[Way, Callable[[], object]], repeats: int) -> dict[Way, list[float]]:
    """Seconds of ``repeats`` calls of each way; one more before, which compiles, is not counted."""
    seconds: dict[Way, list[float]] = {way: [] for way in ways}
    for turn in range(repeats + 1):
        for way, call in ways.items():
            begun = time.perf_counter()
            call()
            if turn:
                seconds[way].append(time.perf_counter() - begun)
    return seconds
