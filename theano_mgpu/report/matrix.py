"""Which class is taken for which: a heat map of few classes, a table of the most confused pairs of many."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape

import numpy as np

from theano_mgpu.report.tables import bar, table
from theano_mgpu.training import Examination

__all__ = ["class_table", "confused_pairs", "confusion_map", "has_map", "pair_table"]

#: More classes than this make cells too small to see.
_MOST_CLASSES = 40
_MOST_LETTERS = 16
_LETTER = 7.6  # the width of a letter, at most about
_COSINE, _SINE = math.cos(math.radians(50)), math.sin(math.radians(50))
_PAIRS = 12
_WORST = 15
_FEW = 20


def has_map(examined: Examination) -> bool:
    """Whether there are few enough classes for a heat map."""
    return len(examined.classes) <= _MOST_CLASSES


def confused_pairs(confusion: np.ndarray, most: int = _PAIRS) -> list[tuple[int, int, int]]:
    """(truth, answer, how often) of the mistakes, the most frequent first; of equals, the lower classes."""
    wrong = confusion.copy()
    np.fill_diagonal(wrong, 0)
    order = np.argsort(-wrong, axis=None, kind="stable")[:most]
    pairs = [(int(place) // len(wrong), int(place) % len(wrong)) for place in order]
    return [(truth, answer, int(wrong[truth, answer])) for truth, answer in pairs if wrong[truth, answer]]


def confusion_map(examined: Examination) -> str:
    """The heat map as SVG: a row for each true class, shaded by the share of its images."""
    names, confusion = examined.classes, examined.confusion
    count, cell = len(names), max(16, min(30, 480 // len(names)))
    lengths = [_LETTER * len(_short(name)) for name in names]
    label, top = max(lengths) + 12, max(lengths) * _SINE + 14  # the columns' names are turned by 50 degrees
    ends = [label + (place + 0.5) * cell + length * _COSINE for place, length in enumerate(lengths)]
    width, height = max(*ends, label + count * cell) + 10, top + count * cell + 4
    drawn = []
    for place, name in enumerate(names):
        middle = place * cell + cell / 2
        short = escape(_short(name))
        drawn.append(f'<text class="tick end" x="{label - 6:.1f}" y="{top + middle + 4:.1f}">{short}</text>')
        turned = f'transform="translate({label + middle + 3:.1f} {top - 5:.1f}) rotate(-50)"'
        drawn.append(f'<text class="tick" {turned}>{short}</text>')
    drawn.append(f'<rect class="frame" x="{label:.1f}" y="{top:.1f}" width="{count * cell}" height="{count * cell}"/>')
    totals = confusion.sum(axis=1)
    for truth, answer in np.argwhere(confusion):
        number, total = int(confusion[truth, answer]), int(totals[truth])
        kind = "right" if truth == answer else "wrong"
        x, y = label + answer * cell, top + truth * cell
        said = f"{names[truth]}: answered {names[answer]} {number:,} of {total:,} times"
        drawn.append(
            f'<g><title>{escape(said)}</title><rect class="cell {kind}" x="{x + 0.5:.1f}" y="{y + 0.5:.1f}" '
            f'width="{cell - 1}" height="{cell - 1}" fill-opacity="{0.12 + 0.88 * number / total:.2f}"/>'
        )
        if cell >= 22 and number < 10_000:
            strong = " strong" if number / total > 0.45 else ""
            drawn.append(
                f'<text class="count{strong}" x="{x + cell / 2:.1f}" y="{y + cell / 2 + 4:.1f}">{number}</text>'
            )
        drawn.append("</g>")
    right, total = int(np.trace(confusion)), int(confusion.sum())
    return (
        f'<svg id="confusion" class="matrix" viewBox="0 0 {width:.0f} {height:.0f}" role="img" '
        f'style="max-width:{width:.0f}px;min-width:{min(width, label + 12 * count):.0f}px" '
        'aria-labelledby="confusion-title confusion-desc">'
        '<title id="confusion-title">Confusion matrix</title>'
        f'<desc id="confusion-desc">Rows are the true classes, columns the answers; {right:,} of {total:,} answers are '
        f"right.</desc>{''.join(drawn)}</svg>"
    )


def pair_table(examined: Examination) -> str:
    """The most confused pairs."""
    totals = examined.confusion.sum(axis=1)
    rows = [
        [examined.classes[truth], examined.classes[answer], f"{times:,} of {int(totals[truth]):,}"]
        for truth, answer, times in confused_pairs(examined.confusion)
    ]
    return table("Most often confused", ["truth", "answered", "times"], rows, numbers={2})


def class_table(examined: Examination) -> str:
    """Each class's images and how many are answered right, the worst first; of more than a few, the others folded."""
    totals, right = examined.confusion.sum(axis=1), np.diag(examined.confusion)
    shares = right / np.maximum(totals, 1)
    order: Sequence[int] = [place for place in np.argsort(shares, kind="stable").tolist() if totals[place]]
    with_top5 = len(examined.classes) > 5
    rows = [
        [
            examined.classes[place],
            f"{int(totals[place]):,}",
            bar(float(shares[place])),
            *([_percent(examined.top5[place] / totals[place])] if with_top5 else []),
        ]
        for place in order
    ]
    headers = ["class", "images", "top-1", *(["top-5"] if with_top5 else [])]
    if len(rows) <= _FEW:
        return table("Classes, the worst first", headers, rows, numbers={1, 3})
    worst = table(f"The {_WORST} worst of {len(rows)} classes", headers, rows[:_WORST], numbers={1, 3})
    others = table("The other classes", headers, rows[_WORST:], numbers={1, 3})
    return f"{worst}<details><summary>The other {len(rows) - _WORST} classes</summary>{others}</details>"


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"


def _short(name: str) -> str:
    return name if len(name) <= _MOST_LETTERS else name[: _MOST_LETTERS - 1] + "…"
