"""A cut as text: what runs where, and what travels between."""

from __future__ import annotations

import textwrap
from collections.abc import Sequence

from theano_mgpu.cut import Cut
from theano_mgpu.drawing.summary import Running, Summary, listed, plural, summarise
from theano_mgpu.drawing.work import Work

__all__ = ["diagram"]

# Two columns of boxes, the batch's and the update's, with room for an arrow between: 98 characters.
_LEFT, _GAP, _RIGHT = 46, 8, 44
_SECOND = _LEFT + _GAP
# Where the lines leave the upper boxes, and where they arrive.
_MIRROR_FROM, _MIRROR_TO, _WHOLE_FROM, _WHOLE_TO = _SECOND + 10, 32, 22, _SECOND + 24
_MOST_OPERATIONS = 8

Row = tuple[str, str]  # a label, and what stands beside it


def diagram(cut: Cut, running: Running | None = None) -> str:
    """The cut as text, at most 98 columns wide; with ``running``, on which contexts and how often."""
    summary = summarise(cut, running)
    page = _Page()
    if running is not None:
        for line in textwrap.wrap(f"{running.name}: {running.description}", _SECOND + _RIGHT):
            page.write(0, page.height, line)
    top = page.height
    left = page.box(0, top, _LEFT, "inputs", _input_rows(summary))
    right = page.box(_SECOND, top, _RIGHT, "shared variables", _shared_rows(summary))
    _arrows_in(page, summary, left, right)
    top = page.height
    left = page.box(0, top, _LEFT, _device_title(summary.running), _work_rows(summary.device))
    right = page.box(_SECOND, top, _RIGHT, _update_title(summary.running), _update_rows(summary))
    if summary.gathered:
        page.write(_LEFT, (top + min(left, right)) // 2, "gather".center(_GAP))
        page.write(_LEFT, (top + min(left, right)) // 2 + 1, "─" * (_GAP - 1) + "►")
    _results(page, summary, left, right)
    return str(page)


class _Page:
    """Text that is written at columns and rows."""

    def __init__(self) -> None:
        self._rows: list[str] = []

    @property
    def height(self) -> int:
        return len(self._rows)

    def write(self, column: int, row: int, text: str) -> None:
        self._rows += [""] * (row + 1 - len(self._rows))
        line = self._rows[row].ljust(column + len(text))
        self._rows[row] = line[:column] + text + line[column + len(text) :]

    def box(self, column: int, row: int, width: int, title: str, rows: Sequence[Row]) -> int:
        """A box with a title; the row of its lower edge."""
        lines = _wrapped(rows, width - 4)
        self.write(column, row, f"┌─ {title} ".ljust(width - 1, "─") + "┐")
        for i, line in enumerate(lines):
            self.write(column, row + 1 + i, f"│ {line.ljust(width - 4)} │")
        self.write(column, row + 1 + len(lines), "└" + "─" * (width - 2) + "┘")
        return row + 1 + len(lines)

    def down(self, column: int, start: int, end: int, tip: str = "▼") -> None:
        """A line from a box's lower edge to a row, where its tip is."""
        self.write(column, start, "┬")
        for row in range(start + 1, end):
            self.write(column, row, "│")
        self.write(column, end, tip)

    def __str__(self) -> str:
        return "\n".join(line.rstrip() for line in self._rows)


def _wrapped(rows: Sequence[Row], width: int) -> list[str]:
    """Rows as lines, the labels in a column of their own."""
    column = max((len(label) + 2 for label, _ in rows if label), default=0)
    lines = []
    for label, text in rows:
        # Names may hold hyphens, and a name is no place to break.
        wrapped = textwrap.wrap(text, width - column, subsequent_indent="  ", break_on_hyphens=False) or [""]
        lines += [label.ljust(column) + wrapped[0], *(" " * column + line for line in wrapped[1:])]
    return lines


def _labelled(label: str, lines: Sequence[str]) -> list[Row]:
    return [(label if i == 0 else "", line) for i, line in enumerate(lines)]


def _input_rows(summary: Summary) -> list[Row]:
    return [*_labelled("split", summary.split), *_labelled("whole", summary.whole)] or [("", "none")]


def _shared_rows(summary: Summary) -> list[Row]:
    rows: list[Row] = []
    groups = [("mirrored", summary.mirrored), ("resident", summary.resident), (summary.kept_where, summary.kept)]
    for label, group in groups:
        if group:
            rows += _labelled(label, [plural(len(group), "variable"), group.amount, listed(group.names)])
    rows += _labelled("random", [f"{name}, a key for each shard" for name in summary.generators])
    return rows or [("", "none")]


def _arrows_in(page: _Page, summary: Summary, left: int, right: int) -> None:
    """Inputs and shared variables to the parts that read them; ``left`` and ``right`` are the boxes' lower edges."""
    top = page.height
    tip = top + 2
    kept = _SECOND + 36
    if summary.update_reads_shared:
        page.down(kept, right, tip)
    if summary.mirrored or summary.generators:
        page.down(_MIRROR_FROM, right, top + 1, "┘")
        page.write(_MIRROR_TO, top + 1, "┌" + " mirror ".center(_MIRROR_FROM - _MIRROR_TO - 1, "─"))
        page.write(_MIRROR_TO, tip, "▼")
    if summary.whole_in_update:
        page.down(_WHOLE_FROM, left, top, "└")
        line = " whole ".center(_WHOLE_TO - _WHOLE_FROM - 1, "─") + "┐"
        if summary.mirrored or summary.generators:
            crossing = _MIRROR_FROM - _WHOLE_FROM - 1
            line = line[:crossing] + "┼" + line[crossing + 1 :]
        page.write(_WHOLE_FROM + 1, top, line)
        page.write(_WHOLE_TO, top + 1, "│")
        page.write(_WHOLE_TO, tip, "▼")
    for column, used, label in ((3, summary.split, "split"), (12, summary.whole_on_devices, "whole")):
        if used:
            page.down(column, left, tip)
            page.write(column + 2, top + 1, label)


def _device_title(running: Running) -> str:
    count = len(running.contexts)
    where = f", on {plural(count, 'device')}" if count else ""
    return f"device part, once per shard{where}"


def _update_title(running: Running) -> str:
    return "update, on every device alike" if running.update_on == "device" else "host part, once per batch"


def _work_rows(work: Work) -> list[Row]:
    """The operations of a program, commonest first, a line each; what is elementwise or only a view, in sum."""
    shown = work.operations[:_MOST_OPERATIONS]
    digits = max((len(f"{o.count:,}") for o in shown), default=1)
    width = max((len(o.label) for o in shown), default=0)
    lines = [plural(work.nodes, "node")]
    for o in shown:
        gradients = f"  + {plural(o.gradients, 'gradient')}" if o.gradients else ""
        lines.append(f"{o.count:{digits},} x {o.label.ljust(width)}{gradients}".rstrip())
    more = len(work.operations) - len(shown)
    return [("", line) for line in (*lines, *([f"and {plural(more, 'more kind')}"] if more else []), *work.rest)]


def _update_rows(summary: Summary) -> list[Row]:
    gather = _labelled("gather", summary.gathered_lines) if summary.gathered else []
    apply = [line for _, line in _work_rows(summary.host)] if summary.host.nodes else []
    return [*gather, *_labelled("apply", apply)] or [("", "nothing to do")]


def _results(page: _Page, summary: Summary, left: int, right: int) -> None:
    """What comes back: rows of the batch from the devices, single values and new ones from the update."""
    end = page.height
    if summary.per_example:
        page.down(3, left, end)
    if summary.single or summary.updated:
        page.down(_SECOND + 3, right, end)
    top = page.height
    if summary.per_example:
        page.box(0, top, _LEFT, "outputs, a row for each example", [("", ", ".join(summary.per_example))])
    rows = [("outputs", ", ".join(summary.single))] if summary.single else []
    if summary.updated:
        updated = summary.updated
        rows += _labelled("updated", [plural(len(updated), "variable"), updated.amount, listed(updated.names)])
    if rows:
        page.box(_SECOND, top, _RIGHT, "one value each", rows)
