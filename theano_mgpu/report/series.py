"""The curves of a run, out of its lines of metrics."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from theano_mgpu.training import time_split

__all__ = ["Point", "Series", "evaluation_names", "metric_series", "number", "pace_series", "split_series", "thinned"]

Line = Mapping[str, Any]
#: As many points as a curve of a few hundred pixels can show.
_MOST_POINTS = 400
# A line may hold a pause: it is drawn at the curve's upper end.
_CAP = 4.0


@dataclass(frozen=True)
class Point:
    x: float
    y: float
    label: str


@dataclass(frozen=True)
class Series:
    """A curve. ``kind`` is its place among the page's colours; ``marked`` draws each point."""

    name: str
    points: list[Point]
    kind: str
    marked: bool = False


def number(value: Any) -> float | None:
    """A finite number, or None."""
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) else None


def evaluation_names(lines: Iterable[Line], metric: str) -> list[str]:
    """Of ``val_top1`` and ``ema_top1`` with metric "top1": ["val", "ema"], in the order of the lines; "val" first."""
    names = {key.removesuffix(f"_{metric}"): None for line in lines for key in line if key.endswith(f"_{metric}")}
    return sorted(names, key=lambda name: name != "val")


def metric_series(lines: Sequence[Line], metric: str) -> list[Series]:
    """Training's curve of a metric, then one for each evaluation that gives it."""
    found = [Series("train", thinned(_points(lines, metric)), "train")]
    for place, name in enumerate(evaluation_names(lines, metric)):
        points = _points(lines, f"{name}_{metric}")
        found.append(Series(name, thinned(points), ("val", "second", "third")[min(place, 2)], marked=len(points) < 60))
    return [series for series in found if series.points]


def pace_series(lines: Sequence[Line], key: str) -> list[Series]:
    """One number of the lines, such as the learning rate, without what evaluations gave."""
    points = thinned(_points(lines, key))
    return [Series(key.replace("_", " "), points, "val")] if points else []


def split_series(lines: Sequence[Line]) -> list[Series]:
    """Seconds a step by what they went into; lines that divide a step otherwise than the last one are left out.

    The first line is left out where there are others, since its first step compiles, and one that is far above the
    median is cut off.
    """
    lines = lines[1:] if len(lines) > 2 else lines
    splits = [time_split(line) for line in lines]
    alike = [
        (line, split) for line, split in zip(lines, splits, strict=True) if split and split.keys() == splits[-1].keys()
    ]
    if not alike:
        return []
    cap = _CAP * statistics.median(sum(split.values()) for _, split in alike)
    found = []
    for part in alike[-1][1]:
        points = []
        for line, split in alike:
            total = sum(split.values())
            points.append(Point(_x(line), split[part] * min(1.0, cap / total if total else 1.0), _label(line)))
        found.append(Series("step" if part == "step_seconds" else part, thinned(points), part))
    return found


def thinned(points: list[Point], most: int = _MOST_POINTS) -> list[Point]:
    """At most so many points: the means of neighbours, at the place of the last of them."""
    size = -(-len(points) // most)
    if size < 2:
        return points
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [Point(group[-1].x, statistics.fmean(p.y for p in group), group[-1].label) for group in groups]


def _points(lines: Sequence[Line], key: str) -> list[Point]:
    found = [(line, number(line.get(key))) for line in lines]
    return [Point(_x(line), y, _label(line)) for line, y in found if y is not None]


def _x(line: Line) -> float:
    return float(line["step"])


def _label(line: Line) -> str:
    epoch = number(line.get("epoch"))
    return f"step {line['step']:,}" + ("" if epoch is None else f" · epoch {epoch:.2f}")
