"""An image folder as text: a line a class, and what there is to know about all of them."""

from __future__ import annotations

import io
import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from theano_mgpu.data.folders import ImageFolder
    from theano_mgpu.data.packs import Packed

__all__ = ["class_table", "folder_table"]

_LINES = 40  # classes that are listed; of more, the first and last twenty


def folder_table(dataset: ImageFolder | Packed) -> str:
    """Classes with their numbers of images, sizes, and the numbers of broken and doubled files."""
    counts = {
        split: np.bincount(files.labels, minlength=len(dataset.classes))
        for split, files in (("train", dataset.train), ("val", dataset.val))
    }
    columns = {split: (f"{column.sum():,}", [f"{number:,}" for number in column]) for split, column in counts.items()}
    widths = np.concatenate([dataset.train.widths, dataset.val.widths])
    heights = np.concatenate([dataset.train.heights, dataset.val.heights])
    size = (dataset.train.file_sizes.sum() + dataset.val.file_sizes.sum()) / 1e6
    lines = [
        f"{_printable(str(dataset.path))}: {size:,.1f} MB; images {widths.min()} to {widths.max()} wide (median "
        f"{np.median(widths):.0f}), {heights.min()} to {heights.max()} high (median {np.median(heights):.0f}).",
        f"{len(dataset.broken):,} broken files left out; {len(dataset.duplicates):,} validation images are also "
        "training images.",
    ]
    return "\n".join([class_table(dataset.classes, columns), *lines])


def class_table(classes: Sequence[str], columns: Mapping[str, tuple[str, Sequence[str]]]) -> str:
    """A line a class with its number and its name; columns by their headings, each with what stands below its lines.

    Of more than forty classes the first and last twenty.
    """
    table = Table(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
    table.add_column("label", "", justify="right")
    table.add_column("class", f"{len(classes):,} classes")
    for heading, (total, _) in columns.items():
        table.add_column(heading, total, justify="right")
    last = len(classes)
    shown = range(last) if last <= _LINES else [*range(_LINES // 2), None, *range(last - _LINES // 2, last)]
    for label in shown:
        if label is None:
            table.add_row("…", f"{last - _LINES:,} more", *("…" for _ in columns))
        else:
            name = Text(_printable(classes[label]))
            table.add_row(str(label), name, *(column[label] for _, column in columns.values()))
    console = Console(file=io.StringIO(), width=100, color_system=None, legacy_windows=False)
    with console.capture() as text:
        console.print(table)
    return "\n".join(line.rstrip() for line in text.get().strip("\n").splitlines())


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")
