"""A cut as a picture: the batch in shards, the devices in parallel lanes, the update, and the way back."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

from theano_mgpu.cut import Cut
from theano_mgpu.drawing.elements import Picture, wrapped
from theano_mgpu.drawing.summary import Running, Summary, listed, plural, summarise
from theano_mgpu.drawing.work import Work, sampled
from theano_mgpu.weights import write_whole

__all__ = ["draw", "svg"]

_MOST_LANES = 8
_MOST_TURNS = 4  # shards beside each other in one lane
_MOST_KINDS = 6  # operations with a colour of their own
_MOST_BARS = 120


class _Place(NamedTuple):
    x: float
    y: float
    width: float
    height: float

    @property
    def right(self) -> float:
        return self.x + self.width

    @property
    def bottom(self) -> float:
        return self.y + self.height

    @property
    def middle(self) -> float:
        return self.y + self.height / 2


_WIDTH, _HEIGHT = 1280, 772
_BATCH = _Place(36, 164, 236, 370)
_DEVICES = _Place(336, 164, 464, 370)
_UPDATE = _Place(892, 164, 340, 370)
_SHARED = _Place(336, 606, 704, 134)
_RESULTS = _Place(1076, 606, 156, 134)
_LANES_TOP, _LANES_HEIGHT = 226, 200
_RULE_TOP = 414
_BARS = _Place(_DEVICES.x + 96, 0, _DEVICES.width - 120, 1)

# In the circle where shards come together, by the first kind of what is gathered.
_SIGNS = {"average": "mean", "total": "sum", "maximum": "max", "minimum": "min"}


def draw(cut: Cut, path: str | os.PathLike[str], running: Running) -> str | os.PathLike[str]:
    """Write the cut as an SVG picture to ``path``, which is also what it returns.

    The file is there as a whole or not at all. Raises ValueError for a path that does not end in ".svg".
    """
    target = Path(path)
    if target.suffix.lower() != ".svg":
        raise ValueError(
            f"draw(): 'path' should end in \".svg\", the one format that is drawn, got {os.fspath(path)!r}. "
            f"Give {target.stem + '.svg'!r} and convert that, or open it in a browser and print it."
        )
    picture = svg(cut, running).encode()
    write_whole(target, lambda file: file.write(picture))
    return path


def svg(cut: Cut, running: Running) -> str:
    """The picture's text."""
    summary = summarise(cut, running)
    picture = Picture(_WIDTH, _HEIGHT, f"{running.name}: what runs where", _in_words(summary))
    picture.text(_BATCH.x, 54, running.name, _WIDTH - 2 * _BATCH.x, 27, "strong")
    picture.text(
        _BATCH.x, 82, f"One graph, cut at its averages: {running.description}", _WIDTH - 2 * _BATCH.x, 15, "muted"
    )
    lanes = _lanes(len(running.contexts))
    _draw_devices(picture, summary, lanes)
    _draw_batch(picture, summary, lanes)
    if summary.has_update:
        _draw_update(picture, summary, lanes)
    _draw_whole(picture, summary)
    _draw_shared(picture, summary)
    _draw_results(picture, summary, lanes)
    return str(picture)


def _in_words(summary: Summary) -> str:
    """For those who hear a picture."""
    nodes = f"{plural(summary.device.nodes, 'node')} once per shard, {plural(summary.host.nodes, 'node')} in the update"
    gathered = f"gathered: {', '.join(summary.gathered_lines)}" if summary.gathered else "nothing is gathered"
    return f"{summary.running.description}; {nodes}; {gathered}; {plural(len(summary.updated), 'new value')}."


def _lanes(devices: int) -> list[tuple[int | None, _Place]]:
    """Each lane's device and place; None stands for the ones that are left out."""
    shown: list[int | None] = list(range(devices))
    if devices > _MOST_LANES:
        shown = [*range(_MOST_LANES - 2), None, devices - 1]
    gap = 4 if len(shown) > 5 else 9
    pitch = min(_LANES_HEIGHT / len(shown), 64)
    top = _LANES_TOP + (_LANES_HEIGHT - pitch * len(shown) + gap) / 2
    return [
        (device, _Place(_DEVICES.x + 16, top + i * pitch, _DEVICES.width - 32, pitch - gap))
        for i, device in enumerate(shown)
    ]


def _draw_devices(picture: Picture, summary: Summary, lanes: list[tuple[int | None, _Place]]) -> None:
    picture.rectangle(*_DEVICES, "device")
    x, width = _DEVICES.x + 16, _DEVICES.width - 32
    picture.text(x, _DEVICES.y + 28, "device part", width, 18, "strong")
    picture.text(x, _DEVICES.y + 48, f"{plural(summary.device.nodes, 'node')}, once per shard", width, 13, "muted")
    _define_program(picture, summary.device)
    for device, lane in lanes:
        if device is None:
            picture.text(lane.x + lane.width / 2, lane.middle + 5, "···", 60, 16, "muted strong", "middle")
            continue
        picture.rectangle(*lane, "lane", radius=5)
        picture.text(lane.x + 9, lane.middle + 4.5, summary.running.contexts[device], 68, 13, "mono strong")
        inset = 4 if lane.height < 30 else 8
        picture.use("program", lane.y + inset, lane.height - 2 * inset)
    _draw_legend(picture, summary.device)


def _define_program(picture: Picture, work: Work) -> None:
    """The operations in the order in which they run, a bar each, gradients paler: the same on every lane."""
    bars = sampled(work.order, _MOST_BARS)
    pitch = min(_BARS.width / max(len(bars), 1), 34)
    picture.begin_group("program")
    for i, (operation, is_gradient) in enumerate(bars):
        kind = f"kind{operation}" if operation < _MOST_KINDS else "other"
        picture.bar(_BARS.x + i * pitch, 0, pitch * 0.88, 1, kind, 0.5 if is_gradient else 1)
    picture.end_group()


def _draw_legend(picture: Picture, work: Work) -> None:
    x, y = _DEVICES.x + 16, _LANES_TOP + _LANES_HEIGHT + 20
    column = (_DEVICES.width - 32) / 2
    for i, operation in enumerate(work.operations[:_MOST_KINDS]):
        left, line = x + (i % 2) * column, y + (i // 2) * 21
        picture.bar(left, line - 10, 7, 11, f"kind{i}")
        picture.bar(left + 8, line - 10, 4, 11, f"kind{i}", 0.5 if operation.gradients else 0)
        gradients = f" + {operation.gradients:,}" if operation.gradients else ""
        picture.text(left + 18, line, f"{operation.count:,}{gradients} {operation.label}", column - 20, 12, "mono")
    rows = (min(len(work.operations), _MOST_KINDS) + 1) // 2
    more = sum(o.count + o.gradients for o in work.operations[_MOST_KINDS:])
    rest = [f"{more:,} of other ops"] if more else []
    rest += [f"{work.elementwise.total():,} elementwise"] if work.elementwise else []
    rest += [f"{work.collectives:,} averages between the devices"] if work.collectives else []
    rest += [f"{work.reductions.total() + work.views:,} of sums, shapes, casts"]
    picture.text(x, y + rows * 21 + 2, ", ".join(rest), 2 * column, 12, "muted")
    if any(o.gradients for o in work.operations):
        picture.text(_DEVICES.right - 16, _DEVICES.y + 48, "paler: gradients", 150, 12, "muted", "end")


def _draw_batch(picture: Picture, summary: Summary, lanes: list[tuple[int | None, _Place]]) -> None:
    """The batch's slices, each beside the lane that it goes to."""
    if not summary.split:
        return
    running = summary.running
    picture.text(_BATCH.x, _BATCH.y + 28, "batch", 120, 18, "strong")
    picture.text(_BATCH.x, _BATCH.y + 48, "split along axis 0", _BATCH.width, 13, "muted")
    for device, lane in lanes:
        if device is None:
            picture.text(_BATCH.x + _BATCH.width / 2, lane.middle + 5, "···", 60, 16, "muted strong", "middle")
            continue
        shards = list(range(running.shards))[device * running.rounds : (device + 1) * running.rounds]
        shown = shards if len(shards) <= _MOST_TURNS else shards[: _MOST_TURNS - 1]
        slots = len(shown) + (len(shards) > len(shown))
        pitch = _BATCH.width / max(slots, 1)
        for i, shard in enumerate(shown):
            label = f"shard {shard}" if pitch > 90 else str(shard)
            picture.rectangle(_BATCH.x + i * pitch, lane.y, pitch - 4, lane.height, "shard", radius=3)
            centre = _BATCH.x + i * pitch + pitch / 2 - 2
            picture.text(centre, lane.middle + 4.5, label, pitch - 8, 13, anchor="middle")
        if slots > len(shown):
            centre = _BATCH.x + (slots - 0.5) * pitch - 2
            picture.text(centre, lane.middle + 5, f"… {shards[-1]}", pitch - 4, 13, "muted", "middle")
        if shards:
            picture.path(f"M{_BATCH.right + 2:g} {lane.middle:g}H{lane.x - 8:g}", "batch")
            picture.tip(lane.x - 1, lane.middle, "right", "batch", 6 if lane.height < 30 else 8)
    y = _LANES_TOP + _LANES_HEIGHT + 20
    shown_inputs = summary.split if len(summary.split) <= 4 else (*summary.split[:3], "…")
    picture.paragraph(_BATCH.x, y, shown_inputs, _BATCH.width, 12, "mono", most=1)


def _draw_update(picture: Picture, summary: Summary, lanes: list[tuple[int | None, _Place]]) -> None:
    on_device = summary.running.update_on == "device"
    picture.rectangle(*_UPDATE, "device" if on_device else "host")
    x, width = _UPDATE.x + 18, _UPDATE.width - 36
    picture.text(x, _UPDATE.y + 28, "update" if on_device else "host part", width, 18, "strong")
    where = "on every device alike" if on_device else "once per batch"
    picture.text(x, _UPDATE.y + 48, where, width, 13, "muted")
    centre, middle, radius = x + 26, _LANES_TOP + _LANES_HEIGHT / 2, 28
    if summary.gathered:
        for device, lane in lanes:
            if device is not None:
                picture.curve(lane.right, lane.middle, centre - radius, middle, "update")
        picture.circle(centre, middle, radius, "node")
        picture.text(centre, middle + 5, _SIGNS[next(iter(summary.reductions))], 2 * radius - 4, 15, "on", "middle")
        text_x = centre + radius + 14
        picture.text(text_x, middle - 56, "all-reduce" if on_device else "gather", 200, 14, "strong")
        picture.paragraph(text_x, middle - 35, summary.gathered_lines, _UPDATE.right - 10 - text_x, 12)
        picture.path(f"M{centre:g} {middle + radius:g}V{_RULE_TOP - 9:g}", "update")
        picture.tip(centre, _RULE_TOP, "down", "update")
    picture.rectangle(x, _RULE_TOP, width, _UPDATE.bottom - _RULE_TOP - 16, "inner", radius=5)
    picture.text(x + 12, _RULE_TOP + 23, "update rule" if summary.updated else "outputs", width - 24, 14, "strong")
    named = (f"{o.count + o.gradients:,} {o.label}" for o in summary.host.operations[:2])
    lines = [plural(summary.host.nodes, "node"), *named, *summary.host.rest]
    fitting = [line for text in lines for line in wrapped(text, width - 24, 12, 2)]
    picture.paragraph(x + 12, _RULE_TOP + 43, fitting[:4], width - 24, 12, most=1)


def _draw_whole(picture: Picture, summary: Summary) -> None:
    """Inputs that go whole, over the top to where they are read."""
    if not summary.whole:
        return
    y = 120
    picture.rectangle(_BATCH.x, y - 17, _BATCH.width, 34, "memory", radius=17)
    label = listed(summary.whole, 2) if len(summary.whole) < 3 else f"{len(summary.whole)} inputs"
    picture.text(_BATCH.x + 16, y + 5, label, _BATCH.width - 32, 12, "mono")
    ends = []
    if summary.whole_on_devices:
        ends.append((_DEVICES.x + _DEVICES.width / 2, _DEVICES.y))
    if summary.whole_in_update:
        ends.append((_UPDATE.x + _UPDATE.width / 2, _UPDATE.y))
    for x, end in reversed(ends):
        picture.path(f"M{_BATCH.right:g} {y}H{x - 8:g}Q{x:g} {y} {x:g} {y + 8}V{end - 9:g}", crossing=True)
        picture.tip(x, end, "down")
    if ends:
        picture.text(_BATCH.right + 14, y - 8, "whole", 48, 13, "muted")


def _draw_shared(picture: Picture, summary: Summary) -> None:
    if not (summary.mirrored or summary.resident or summary.kept or summary.generators):
        return
    picture.rectangle(*_SHARED, "memory")
    x, width = _SHARED.x + 18, _SHARED.width - 36
    picture.text(x, _SHARED.y + 27, "shared variables", 200, 16, "strong")
    picture.text(x + 180, _SHARED.y + 27, "in the host's memory", width - 180, 13, "muted")
    column = width / 2
    alone = "of the update only" if summary.running.update_on == "device" else "on the host only"
    groups = [("mirrored to every device", summary.mirrored), (alone, summary.kept)]
    for i, (label, group) in enumerate((label, group) for label, group in groups if group):
        left = x + i * column
        picture.text(left, _SHARED.y + 51, f"{len(group):,} {label}", column - 14, 13, "strong")
        picture.text(left, _SHARED.y + 70, group.amount, column - 14, 12)
        picture.paragraph(left, _SHARED.y + 89, [listed(group.names)], column - 14, 12, "mono muted")
    notes = [f"random generators, a key for each shard: {listed(summary.generators)}"] if summary.generators else []
    if summary.resident:
        notes.append(f"resident on the devices, a part on each: {listed(summary.resident.names)}")
    if notes:
        picture.text(x, _SHARED.y + 125, "; ".join(notes), width, 12, "muted")
    if summary.mirrored or summary.generators:
        arrow = _DEVICES.x + 116
        picture.path(f"M{arrow:g} {_SHARED.y}V{_DEVICES.bottom + 9:g}", "batch", 3)
        picture.tip(arrow, _DEVICES.bottom, "up", "batch", 10)
        picture.text(arrow + 16, _DEVICES.bottom + 42, "mirror to every device", 300, 14)
    if summary.updated:
        arrow = _UPDATE.x + 44
        picture.path(f"M{arrow:g} {_UPDATE.bottom}V{_SHARED.y - 11:g}", "update", 3)
        picture.tip(arrow, _SHARED.y, "down", "update", 10)
        picture.text(arrow - 16, _UPDATE.bottom + 42, plural(len(summary.updated), "new value"), 200, 14, anchor="end")


def _draw_results(picture: Picture, summary: Summary, lanes: list[tuple[int | None, _Place]]) -> None:
    """The outputs' box, and where they come from: the update, the devices or both."""
    if not (summary.single or summary.per_example):
        return
    place = _RESULTS if summary.has_update else _UPDATE._replace(y=_LANES_TOP, height=_LANES_HEIGHT)
    if summary.per_example and not summary.has_update:
        for device, lane in lanes:
            if device is not None:
                picture.curve(lane.right, lane.middle, place.x - 10, place.middle, "batch")
        picture.tip(place.x, place.middle, "right", "batch")
    elif summary.per_example:
        x, top, side, end = _DEVICES.right - 40, 142, _WIDTH - 22, place.middle
        way = f"M{x:g} {_DEVICES.y}V{top + 8}Q{x:g} {top} {x + 8:g} {top}H{side - 8}"
        way += f"Q{side} {top} {side} {top + 8}V{end:g}H{place.right + 9:g}"
        picture.path(way, "batch", crossing=True)
        picture.tip(place.right, end, "left", "batch")
    if summary.single:
        x = place.x + place.width / 2
        picture.path(f"M{x:g} {_UPDATE.bottom}V{place.y - 9:g}", "update")
        picture.tip(x, place.y, "down", "update")
    picture.rectangle(*place, "memory")
    width = place.width - 28
    picture.text(place.x + 14, place.y + 27, "outputs", width, 16, "strong")
    y = place.y + 48
    for kind, names in (("one value", summary.single), ("a row an example", summary.per_example)):
        if names:
            y = picture.paragraph(place.x + 14, y, [kind], width, 12, "muted")
            y = picture.paragraph(place.x + 14, y, [listed(names, 2)], width, 12, "mono", most=1)
