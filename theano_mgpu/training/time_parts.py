"""Where a step's seconds went, out of a line of metrics, and what to do where it waits for its batches."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from theano_mgpu import laps

__all__ = ["PARTS", "mean_split", "time_split", "verdict"]

#: What a step's seconds go into, in the order in which they pass.
PARTS = ("wait", *laps.PARTS)

# The most that faster input can give is 1 / (1 - wait) of the speed: 1.11 times at a tenth. Less is not worth a change
# of settings, and lines of one run differ by as much on a machine that does other work.
_BOTTLENECK = 0.1


def time_split(line: Mapping[str, Any]) -> dict[str, float]:
    """Mean seconds a step by what they went into, in order: "wait", "copy", "compute", "gather", "update".

    A part that the line does not know (None, or missing) is left out. Where it knows none but the waiting, the rest is
    one part, "step_seconds".
    """
    split = {part: float(line[part]) for part in PARTS if _is_number(line.get(part))}
    if not split.keys() - {"wait"} and _is_number(line.get("step_seconds")):
        split["step_seconds"] = float(line["step_seconds"])
    return split


def mean_split(lines: Iterable[Mapping[str, Any]]) -> dict[str, float]:
    """The mean of several lines' ``time_split``; of those that divide a step as the last one does."""
    splits = [time_split(line) for line in lines]
    alike = [split for split in splits if split.keys() == splits[-1].keys()]
    return {part: sum(split[part] for split in alike) / len(alike) for part in (splits[-1] if splits else ())}


def verdict(line: Mapping[str, Any]) -> str | None:
    """A sentence where the input is the bottleneck: where more than a tenth of the time is spent waiting for batches.

    line: a line of metrics, or a ``time_split`` or ``mean_split``. None where there is nothing to say, and where the
    line does not know both how long a step waited and how long it took besides.
    """
    split = time_split(line)
    total = sum(split.values())
    if "wait" not in split or len(split) < 2 or split["wait"] <= _BOTTLENECK * total:
        return None
    return (
        f"input is the bottleneck: {100 * split['wait'] / total:.0f} % of the time is spent waiting for batches; more "
        "workers (--workers), images packed at a smaller size (theano-mgpu data pack) or lighter augmentation would "
        "help"
    )


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)
