"""The scaling curve as a picture: what more devices give, and which part of what they could."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from theano_mgpu.drawing.elements import Picture
from theano_mgpu.scaling.model import Point
from theano_mgpu.weights import write_whole

__all__ = ["draw_scaling"]

_WIDTH, _HEIGHT = 1000, 470
_TOP, _BOTTOM = 130, 400
_LEFT, _RIGHT = (90, 470), (590, 970)  # both ends of each panel
#: An update's colour in the drawings' style.
_KINDS = {"host": "update", "device": "batch"}


def draw_scaling(path: str | os.PathLike[str], curves: Mapping[str, Sequence[Point]], title: str, note: str) -> Path:
    """Write the curves as an SVG picture to ``path``, and return it; the file is there as a whole or not at all.

    ``curves``: points of the same numbers of devices for "host" and "device" update. ``note`` is a line below the
    title. Raises ValueError for a path that does not end in ".svg", OSError where it cannot be written.
    """
    target = Path(path)
    if target.suffix.lower() != ".svg":
        raise ValueError(
            f"draw_scaling(): 'path' should end in \".svg\", the one format that is drawn, got '{os.fspath(path)}'. "
            f"Give '{target.stem or 'scaling'}.svg' and convert that, or open it in a browser and print it."
        )
    picture = _drawn(curves, title, note).encode()
    write_whole(target, lambda file: file.write(picture))
    return target


def _drawn(curves: Mapping[str, Sequence[Point]], title: str, note: str) -> str:
    last = {name: points[-1] for name, points in curves.items()}
    ends = (f"update on the {name}: {end.rate:,.4g} images/s, {end.efficiency:.0%}" for name, end in last.items())
    devices = [point.devices for point in next(iter(curves.values()))]
    picture = Picture(_WIDTH, _HEIGHT, title, f"{devices[-1]} devices; {'; '.join(ends)}")
    picture.text(30, 42, title, _WIDTH - 60, 22, "strong")
    picture.text(30, 68, note, _WIDTH - 60, 14, "muted")

    # Of one device that exchanges nothing; the same for all curves.
    alone = max(points[0].rate / points[0].efficiency for points in curves.values())
    lowest = min(point.rate for points in curves.values() for point in points)
    powers = range(math.floor(math.log10(lowest)), math.ceil(math.log10(alone * devices[-1])) + 1)
    rates = _Panel(picture, _LEFT, devices, lambda rate: (math.log10(rate) - powers[0]) / (len(powers) - 1))
    rates.axes("images/s", [(10.0**power, f"{10.0**power:,.12g}") for power in powers])
    parts = _Panel(picture, _RIGHT, devices, lambda part: part)
    parts.axes("efficiency", [(fifth / 5, f"{fifth / 5:.0%}") for fifth in range(6)])

    rates.line([alone * count for count in devices], "", 1.2)
    for name, points in curves.items():
        rates.line([point.rate for point in points], _KINDS[name], 2.5)
        parts.line([point.efficiency for point in points], _KINDS[name], 2.5)
    _key(picture, [*((f"{name} update", _KINDS[name]) for name in curves), ("ideal", "")])
    return str(picture)


class _Panel:
    """Numbers of devices to the right, each doubling as wide; upwards what ``height`` makes of a value, 0 to 1."""

    def __init__(
        self, picture: Picture, ends: tuple[int, int], devices: Sequence[int], height: Callable[[float], float]
    ) -> None:
        self._picture = picture
        self._left, self._right = ends
        self._devices = devices
        self._height = height

    def axes(self, name: str, ticks: Sequence[tuple[float, str]]) -> None:
        width = self._right - self._left
        self._picture.text(self._left, _TOP - 16, name, width, 14, "strong")
        for value, label in ticks:
            self._picture.bar(self._left, self._y(value) - 0.5, width, 1, "other", 0.35)
            self._picture.text(self._left - 8, self._y(value) + 4, label, 80, 12, "muted", "end")
        for count in self._devices:
            if count == self._devices[-1] or self._devices[-1] / count >= 1.4:  # else they would touch
                self._picture.bar(self._x(count) - 0.5, _BOTTOM, 1, 5, "other")
                self._picture.text(self._x(count), _BOTTOM + 20, str(count), 60, 12, "muted", "middle")
        self._picture.text((self._left + self._right) / 2, _BOTTOM + 44, "devices", 120, 13, "muted", "middle")

    def line(self, values: Sequence[float], kind: str, width: float) -> None:
        """A value for each number of devices; a dot each where it has a colour."""
        places = [(self._x(count), self._y(value)) for count, value in zip(self._devices, values, strict=True)]
        self._picture.path("M" + "L".join(f"{x:.1f} {y:.1f}" for x, y in places), kind, width)
        for x, y in places if kind else ():
            self._picture.circle(round(x, 1), round(y, 1), 3.5, f"tip {kind}")

    def _x(self, count: int) -> float:
        return self._left + (self._right - self._left) * math.log2(count) / (math.log2(self._devices[-1]) or 1.0)

    def _y(self, value: float) -> float:
        return _BOTTOM - (_BOTTOM - _TOP) * self._height(value)


def _key(picture: Picture, lines: Sequence[tuple[str, str]]) -> None:
    x, y = _LEFT[0] + 90, _TOP - 21
    for name, kind in lines:
        picture.bar(x, y, 20, 3 if kind else 1.2, f"tip {kind}".strip())
        picture.text(x + 26, y + 5, name, 110, 13)
        x += 128
