"""One live line in a terminal; nothing where there is none."""

from __future__ import annotations

from collections.abc import Mapping
from types import TracebackType
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

__all__ = ["ProgressLine"]


class ProgressLine:
    """A bar, the newest metrics and the time left, inside a ``with`` block, if standard error is a terminal."""

    def __init__(self, total_steps: int | None, *, shown: bool = True) -> None:
        console = Console(stderr=True)
        self._bar: Progress | None = None
        if shown and console.is_terminal:
            self._bar = Progress(
                TextColumn("step"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=console,
            )
            self._task = self._bar.add_task("", total=total_steps)

    def update(self, step: int, line: Mapping[str, Any] | None = None) -> None:
        """``step`` steps are done; ``line`` is a new line of metrics."""
        if self._bar is None:
            return
        self._bar.update(self._task, completed=step)
        if line is not None:
            shown = [f"{key} {line[key]:.3g}" for key in _shown(line)]
            self._bar.update(self._task, description="  ".join(shown))

    def __enter__(self) -> ProgressLine:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        if self._bar is not None:
            self._bar.stop()


def _shown(line: Mapping[str, Any]) -> list[str]:
    names = [name for name in line if name in ("loss", "top1", "images_per_s") or name.endswith("_top1")]
    return [name for name in names if isinstance(line[name], (int, float))]
