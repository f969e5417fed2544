"""The parts of a report, each a piece of HTML; one whose ingredient is missing says so."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from html import escape, unescape
from typing import Any

from theano_mgpu.report.charts import Axis, Chart, line_chart, stacked_chart
from theano_mgpu.report.matrix import class_table, confusion_map, has_map, pair_table
from theano_mgpu.report.pictures import filter_grid, image_uri, svg_uri
from theano_mgpu.report.run_files import Run
from theano_mgpu.report.series import Series, evaluation_names, metric_series, number, pace_series, split_series
from theano_mgpu.report.tables import Markup, table
from theano_mgpu.training import verdict

__all__ = ["SECTIONS"]


def learning(run: Run) -> str:
    """Loss and top-1 of training and of the evaluations."""
    axis = _axis(run)
    drawn = []
    if losses := metric_series(run.lines, "loss"):
        drawn.append(line_chart(Chart("Loss", axis, lambda value: f"{value:.3g}", low=0.0), losses))
    if accuracies := metric_series(run.lines, "top1"):
        high = 1.0 if any(point.y > 0.9 for one in accuracies for point in one.points) else None
        drawn.append(line_chart(Chart("Top-1", axis, _percent, high=high), accuracies))
    if not drawn:
        return _missing("No loss has been written yet.")
    return f'<div class="pair">{"".join(drawn)}</div>{_evaluations(run)}'


def pace(run: Run) -> str:
    """Learning rate, throughput, and where the seconds of a step went."""
    axis, small = _axis(run), {"width": 320, "height": 220}
    drawn = []
    if rates := pace_series(run.lines, "learning_rate"):
        drawn.append(line_chart(Chart("Learning rate", axis, lambda value: f"{value:.3g}", low=0.0, **small), rates))
    if speeds := pace_series(run.lines, "images_per_s"):
        drawn.append(
            line_chart(
                Chart(
                    "Images/s",
                    axis,
                    lambda value: f"{value:,.3g}" if value < 1000 else f"{value:,.0f}",
                    low=0.0,
                    **small,
                ),
                speeds,
            )
        )
    split = split_series(run.lines)
    if split:
        drawn.append(stacked_chart(Chart("Seconds a step", axis, lambda value: f"{value:.3g}", **small), split))
    if not drawn:
        return _missing("No speed has been written yet.")
    return f'<div class="triple">{"".join(drawn)}</div>{_split_table(split)}'


def classes(run: Run) -> str:
    """Which classes are taken for which."""
    examined = run.examined
    if examined is None:
        return _absent(run, "examined", "The network’s answers to the validation images were not kept in this run.")
    confusion = examined.confusion
    total, right = int(confusion.sum()), int(confusion.trace())
    if not total:
        return _missing("No image was examined.")
    said = (
        f"<p>Of {total:,} validation images {right:,} were answered right, {_percent(right / total, 1)}, and of "
        f"{_percent(float(examined.top5.sum()) / total, 1)} the class was among the first five answers; the mean loss "
        f"is {examined.loss:.3f}.</p>"
    )
    tables = f"<div>{pair_table(examined)}</div>" if right < total else ""
    tables = f'<div class="tables">{tables}<div>{class_table(examined)}</div></div>'
    if not has_map(examined):
        return said + tables
    many = " many" if len(examined.classes) > 16 else ""  # a map as wide as the page
    return (
        f"{said}<p>A row is a true class, a column an answer; the darker, the larger the share of the row. Blue is "
        f'right, orange wrong.</p><div class="classes{many}"><div class="scroll" tabindex="0" role="region" '
        f'aria-label="Confusion matrix">{confusion_map(examined)}</div>{tables}</div>'
    )


def mistakes(run: Run) -> str:
    """What the network was most sure of, and wrong."""
    examined = run.examined
    if examined is None:
        return _absent(run, "examined", "The network’s answers to the validation images were not kept in this run.")
    if not len(examined.mistake_images):
        return _missing("There are none.")
    shown = []
    for image, label, answer, confidence in zip(
        examined.mistake_images,
        examined.mistake_labels,
        examined.mistake_answers,
        examined.mistake_confidences,
        strict=True,
    ):
        truth, answered = escape(examined.classes[label]), escape(examined.classes[answer])
        sure = _percent(float(confidence), 0)
        shown.append(
            f'<li><figure><img src="{image_uri(image)}" alt="an image of {truth}"><figcaption><strong>'
            f'{answered}</strong> {sure}<br><span class="quiet">is {truth}</span></figcaption>'
            "</figure></li>"
        )
    small = " small" if max(examined.mistake_images.shape[1:3]) <= 64 else ""
    return (
        "<p>The answers that the network was most sure of, and wrong: a mislabelled image is often among them.</p>"
        f'<ul class="mistakes{small}">{"".join(shown)}</ul>'
    )


def filters(run: Run) -> str:
    """The first layer's filters as pictures."""
    if run.filters is None:
        return _absent(run, "filters", "There is no checkpoint whose network begins with a convolution over an image.")
    height, width, channels, count = run.filters.shape
    uri, across, down = filter_grid(run.filters)
    return (
        f"<p>{count} filters of {height} × {width} pixels, {'in colour' if channels == 3 else 'of one channel'}, from "
        f"the checkpoint “{escape(run.filters_of)}”. Each has its own scale; grey is zero.</p>"
        f'<img class="filters" src="{uri}" width="{across}" height="{down}" alt="the first layer’s {count} filters">'
    )


def cut(run: Run) -> str:
    """What runs on the devices, and what on the host."""
    if run.cut is None:
        return _absent(run, "cut", "The drawing of the training step was not kept in this run.")
    found = re.search(r"<desc>(.*?)</desc>", run.cut, flags=re.DOTALL)
    described = unescape(found[1]) if found else "the training step, cut at its averages"
    return (
        '<div class="scroll" tabindex="0" role="region" aria-label="The training step">'
        f'<img class="cut" src="{svg_uri(run.cut)}" alt="{escape(described)}"></div>'
    )


def recipe(run: Run) -> str:
    """The recipe's text."""
    if run.recipe is None:
        return _absent(run, "recipe", "The run was not made from a recipe.")
    return f'<pre tabindex="0" aria-label="Recipe">{escape(run.recipe.strip())}</pre>'


def machine(run: Run) -> str:
    """What it ran on."""
    if run.machine is None:
        return _absent(run, "machine", "What it ran on was not written down.")
    rows = [[str(name).replace("_", " "), _plain(value)] for name, value in run.machine.items()]
    return f'<div class="wraps">{table("What it ran on", ["part", "which"], rows)}</div>'


#: In the page's order: an anchor, a heading, and what makes the section.
SECTIONS: list[tuple[str, str, Callable[[Run], str]]] = [
    ("learning", "Learning", learning),
    ("pace", "Pace", pace),
    ("classes", "Classes", classes),
    ("mistakes", "Most confident mistakes", mistakes),
    ("filters", "First-layer filters", filters),
    ("cut", "The training step", cut),
    ("recipe", "Recipe", recipe),
    ("machine", "Machine", machine),
]


def _axis(run: Run) -> Axis:
    last: Mapping[str, Any] = run.lines[-1] if run.lines else {"step": 1}
    epoch = number(last.get("epoch"))
    return Axis(float(last["step"]), epoch if epoch is not None and epoch >= 2 else None)


def _evaluations(run: Run) -> str:
    """Every evaluation as a table, folded."""
    metrics = [
        f"{name}_{metric}" for metric in ("loss", "top1", "top5") for name in evaluation_names(run.lines, metric)
    ]
    keys = ["step", "epoch", "loss", "top1", *metrics]
    evaluated = [line for line in run.lines if any(number(line.get(key)) is not None for key in metrics)]
    if not evaluated:
        return ""
    rows = [[_cell(key, line.get(key)) for key in keys] for line in evaluated]
    names = [key.replace("_", " ").replace("top", "top-") for key in keys]
    names[2:4] = ["train loss", "train top-1"]
    made = table("Every evaluation, and training since the line before", names, rows, numbers=set(range(1, len(keys))))
    return f"<details><summary>Every evaluation in numbers</summary>{made}</details>"


def _split_table(split: list[Series]) -> str:
    """The mean seconds of each part, and what to do where it is the waiting."""
    if not split:
        return ""
    means = {one.kind: sum(point.y for point in one.points) / len(one.points) for one in split}
    total = sum(means.values()) or 1.0
    rows = [
        [
            Markup(f'<span class="key {one.kind}" aria-hidden="true"></span>{escape(one.name)}'),
            f"{1000 * means[one.kind]:,.1f}",
            _percent(means[one.kind] / total, 1),
        ]
        for one in reversed(split)
    ]
    sentence = verdict(means)
    said = f'<p class="verdict">{escape(sentence[0].upper() + sentence[1:])}.</p>' if sentence else ""
    return f"{said}{table('Where a step’s time went, in the mean', ['part', 'ms', 'share'], rows, numbers={1, 2})}"


def _cell(key: str, value: Any) -> str:
    shown = number(value)
    if shown is None:
        return "–"
    if key == "step":
        return f"{shown:,.0f}"
    if "top" in key:
        return _percent(shown, 1)
    return f"{shown:.2f}" if key == "epoch" else f"{shown:.4f}"


def _plain(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name}: {_plain(part)}" for name, part in value.items())
    if isinstance(value, (list, tuple)):
        return ", ".join(_plain(part) for part in value)
    return "–" if value is None else str(value)


def _speed(value: float) -> str:
    return f"{value:.3g}" if value < 1000 else f"{value:,.0f}"


def _percent(value: float, digits: int | None = None) -> str:
    return f"{100 * value:.{digits}f} %" if digits is not None else f"{100 * value:.3g} %"


def _absent(run: Run, name: str, sentence: str) -> str:
    return _missing(run.missing.get(name) or sentence)


def _missing(sentence: str) -> str:
    return f'<p class="missing">{escape(sentence)}</p>'
