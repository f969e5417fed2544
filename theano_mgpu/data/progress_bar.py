"""A bar on standard error for what takes minutes."""

from __future__ import annotations

import sys

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["progress_bar"]


def progress_bar(progress: bool | None) -> Progress:
    """A bar on standard error where ``progress`` is true; None, if that is a terminal."""
    console = Console(stderr=True)
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
        transient=console.is_terminal,  # in a log the last line stays
        disable=not (sys.stderr.isatty() if progress is None else progress),
    )
