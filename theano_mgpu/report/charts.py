"""Charts as SVG, drawn here so that they print and show without a script; one only adds what is under the pointer."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

from theano_mgpu.report.series import Series

__all__ = ["Axis", "Chart", "line_chart", "nice_ticks", "stacked_chart"]

_TOP, _BOTTOM = 12, 36
_LETTER = 7.2  # the width of a letter of a label, at most about
_LINE = 14  # the least distance of two labels

Format = Callable[[float], str]


@dataclass(frozen=True)
class Axis:
    """Steps from 0 to ``end``; the ticks count epochs where ``epochs`` says how many that is."""

    end: float
    epochs: float | None = None

    def ticks(self, most: int) -> list[tuple[float, str]]:
        last = self.epochs or self.end
        return [(tick * self.end / last, f"{tick:,g}") for tick in nice_ticks(0, last, most, whole=True)]

    @property
    def name(self) -> str:
        return "step" if self.epochs is None else "epoch"


@dataclass(frozen=True)
class Chart:
    """What a chart is called and how large it is.

    ``form`` writes a value; ``low`` and ``high`` are in the range of the values whatever they are.
    """

    title: str
    axis: Axis
    form: Format
    low: float | None = None
    high: float | None = None
    width: int = 440
    height: int = 250


def line_chart(chart: Chart, series: Sequence[Series]) -> str:
    """Curves, each named at its end, as a ``figure``."""
    values = [point.y for one in series for point in one.points]
    low = min([*values, *([] if chart.low is None else [chart.low])])
    high = max([*values, *([] if chart.high is None else [chart.high])])
    plot = _Plot(chart, low, high, [one.name for one in series] if len(series) > 1 else [])
    drawn = [plot.grid()]
    for one in series:
        drawn.append(plot.curve(one))
    if len(series) > 1:
        drawn.append(plot.names([(one.name, one.kind, one.points[-1].y) for one in series]))
    summary = ", ".join(f"{one.name} {chart.form(one.points[-1].y)}" for one in series)
    ends = "; ".join(
        f"{one.name} from {chart.form(one.points[0].y)} to {chart.form(one.points[-1].y)} in {len(one.points)} points"
        for one in series
    )
    return _figure(chart, ends, summary if len(series) > 1 else chart.form(series[0].points[-1].y), drawn)


def stacked_chart(chart: Chart, series: Sequence[Series]) -> str:
    """Areas, one on top of the other, the first at the bottom, as a ``figure``."""
    totals = [sum(point.y for point in points) for points in zip(*(one.points for one in series), strict=True)]
    plot = _Plot(chart, 0.0, max(totals), [])
    drawn = [plot.grid()]
    below = [0.0] * len(totals)
    for one in series:
        above = [low + point.y for low, point in zip(below, one.points, strict=True)]
        drawn.append(plot.area(one, below, above))
        below = above
    ends = "; ".join(f"{one.name} {chart.form(one.points[-1].y)} at the end" for one in series)
    return _figure(chart, ends, chart.form(totals[-1]), drawn)


def nice_ticks(low: float, high: float, most: int, *, whole: bool = False) -> list[float]:
    """At most so many round numbers, evenly spaced, from at least ``low`` to at most ``high``."""
    if not high > low:
        return [low]
    for exponent in range(math.floor(math.log10((high - low) / most)), 400):
        for factor in (1.0, 2.0, 2.5, 5.0):
            step = factor * 10.0**exponent
            first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
            if last - first < most and not (whole and step != int(step)):
                return [round(place * step, 12) for place in range(first, last + 1)]
    raise AssertionError("a step that large holds any range")


class _Plot:
    """Values to places."""

    def __init__(self, chart: Chart, low: float, high: float, names: Sequence[str]) -> None:
        self.chart = chart
        if high <= low:  # a constant: in the middle
            margin = abs(low) * 0.1 or 1.0
            low, high = low - margin, high + margin
        self.low, self.high = low, high
        self.ticks = nice_ticks(low, high, 6)
        # A range ends at a tick where the next one is near.
        gap = self.ticks[1] - self.ticks[0] if len(self.ticks) > 1 else 0.0
        if gap and chart.low is None and self.ticks[0] - low > 0.4 * gap:
            self.ticks = [self.ticks[0] - gap, *self.ticks]
        if gap and chart.high is None and high - self.ticks[-1] > 0.4 * gap:
            self.ticks = [*self.ticks, self.ticks[-1] + gap]
        self.low, self.high = min(low, self.ticks[0]), max(high, self.ticks[-1])
        self.right = chart.width - 10 - (max(map(len, names)) * _LETTER + 8 if names else 0)
        self.left = 10 + _LETTER * max(len(chart.form(tick)) for tick in self.ticks)
        self.bottom = chart.height - _BOTTOM

    def x(self, step: float) -> float:
        return self.left + (self.right - self.left) * step / (self.chart.axis.end or 1)

    def y(self, value: float) -> float:
        return self.bottom - (self.bottom - _TOP) * (value - self.low) / (self.high - self.low)

    def grid(self) -> str:
        drawn = []
        for tick in self.ticks:
            y = self.y(tick)
            drawn.append(f'<line class="grid" x1="{self.left:.1f}" y1="{y:.1f}" x2="{self.right:.1f}" y2="{y:.1f}"/>')
            drawn.append(
                f'<text class="tick end" x="{self.left - 7:.1f}" y="{y + 4:.1f}">{escape(self.chart.form(tick))}</text>'
            )
        for step, label in self.chart.axis.ticks(7):
            x = self.x(step)
            drawn.append(f'<line class="axis" x1="{x:.1f}" y1="{self.bottom}" x2="{x:.1f}" y2="{self.bottom + 4}"/>')
            drawn.append(f'<text class="tick middle" x="{x:.1f}" y="{self.bottom + 17}">{label}</text>')
        drawn.append(
            f'<line class="axis" x1="{self.left:.1f}" y1="{self.bottom}" x2="{self.right:.1f}" y2="{self.bottom}"/>'
        )
        middle = (self.left + self.right) / 2
        drawn.append(f'<text class="tick middle" x="{middle:.1f}" y="{self.bottom + 32}">{self.chart.axis.name}</text>')
        return "".join(drawn)

    def curve(self, series: Series) -> str:
        places = [(self.x(point.x), self.y(point.y)) for point in series.points]
        drawn = f'<polyline class="curve {series.kind}" {self._data(series)} points="{_path(places)}"/>'
        if series.marked or len(places) == 1:
            drawn += "".join(
                f'<circle class="dot {series.kind}" cx="{x:.1f}" cy="{y:.1f}" r="2.6"/>' for x, y in places
            )
        return drawn

    def area(self, series: Series, below: Sequence[float], above: Sequence[float]) -> str:
        upper = [(self.x(point.x), self.y(y)) for point, y in zip(series.points, above, strict=True)]
        lower = [(self.x(point.x), self.y(y)) for point, y in zip(series.points, below, strict=True)]
        return (
            f'<polygon class="area {series.kind}" points="{_path([*upper, *reversed(lower)])}"/>'
            f'<polyline class="edge" {self._data(series)} points="{_path(upper)}"/>'
        )

    def names(self, ends: list[tuple[str, str, float]]) -> str:
        """Each at the height of its curve's end, but no two closer than a line."""
        drawn, taken = [], -math.inf
        in_order = sorted(ends, key=lambda end: -end[2])
        lowest = self.bottom - _LINE * (len(in_order) - 1)
        for place, (name, kind, value) in enumerate(in_order):
            y = max(min(self.y(value), lowest + _LINE * place), taken + _LINE, _TOP)
            drawn.append(f'<text class="name {kind}" x="{self.right + 7:.1f}" y="{y + 4:.1f}">{escape(name)}</text>')
            taken = y
        return "".join(drawn)

    def _data(self, series: Series) -> str:
        """What the script shows of the point under the pointer."""
        values = "|".join(self.chart.form(point.y) for point in series.points)
        labels = "|".join(point.label for point in series.points)
        return f'data-name="{escape(series.name)}" data-values="{escape(values)}" data-labels="{escape(labels)}"'


def _path(places: Sequence[tuple[float, float]]) -> str:
    return " ".join(f"{x:.1f},{y:.1f}" for x, y in places)


def _figure(chart: Chart, description: str, summary: str, drawn: Sequence[str]) -> str:
    ident = "".join(letter if letter.isalnum() else "-" for letter in chart.title.lower())
    return (
        f'<figure class="chart"><figcaption><strong>{escape(chart.title)}</strong> '
        f'<span class="quiet">{escape(summary)}</span></figcaption>'
        f'<svg id="{ident}" viewBox="0 0 {chart.width} {chart.height}" role="img" tabindex="0" '
        f'aria-labelledby="{ident}-title {ident}-desc">'
        f'<title id="{ident}-title">{escape(chart.title)} by {chart.axis.name}</title>'
        f'<desc id="{ident}-desc">{escape(description)}</desc>{"".join(drawn)}'
        '<line class="pointer" y1="12" y2="0"/></svg><output class="readout"></output></figure>'
    )
