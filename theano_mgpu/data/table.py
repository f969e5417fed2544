"""An image folder as text: a line a class, and what there is to know about all of them."""

from __future__ import annotations

import io
import os
from typing import TYPE_CHECKING

import numpy as np
from rich.box import SIMPLE_HEAD
from rich.console import Console
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from theano_mgpu.data.folders import ImageFolder
    from theano_mgpu.data.packs import Packed

__all__ = ["folder_table"]

_LINES = 40  # classes that are listed; of more, the first and last twenty


def folder_table(dataset: ImageFolder | Packed) -> str:
    """Classes with their numbers of images, sizes, and the numbers of broken and doubled files."""
    counts = {
        split: np.bincount(files.labels, minlength=len(dataset.classes))
        for split, files in (("train", dataset.train), ("val", dataset.val))
    }
    table = Table(box=SIMPLE_HEAD, show_footer=True, pad_edge=False)
    table.add_column("label", "", justify="right")
    table.add_column("class", f"{len(dataset.classes):,} classes")
    for split, column in counts.items():
        table.add_column(split, f"{column.sum():,}", justify="right")
    last = len(dataset.classes)
    shown = range(last) if last <= _LINES else [*range(_LINES // 2), None, *range(last - _LINES // 2, last)]
    for label in shown:
        if label is None:
            table.add_row("…", f"{last - _LINES:,} more", "…", "…")
        else:
            name = Text(_printable(dataset.classes[label]))
            table.add_row(str(label), name, *(f"{column[label]:,}" for column in counts.values()))
    widths = np.concatenate([dataset.train.widths, dataset.val.widths])
    heights = np.concatenate([dataset.train.heights, dataset.val.heights])
    size = (dataset.train.file_sizes.sum() + dataset.val.file_sizes.sum()) / 1e6
    lines = [
        f"{_printable(str(dataset.path))}: {size:,.1f} MB; images {widths.min()} to {widths.max()} wide (median "
        f"{np.median(widths):.0f}), {heights.min()} to {heights.max()} high (median {np.median(heights):.0f}).",
        f"{len(dataset.broken):,} broken files left out; {len(dataset.duplicates):,} validation images are also "
        "training images.",
    ]
    console = Console(file=io.StringIO(), width=100, color_system=None, legacy_windows=False)
    with console.capture() as text:
        console.print(table)
    return "\n".join([*(line.rstrip() for line in text.get().strip("\n").splitlines()), *lines])


def _printable(name: str) -> str:
    return os.fsencode(name).decode("utf-8", "replace")
