"""A run's metrics as files that TensorBoard reads."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType
from typing import Any

from theano_mgpu.training.time_parts import PARTS

__all__ = ["TensorBoard", "tag"]

_FLUSH_SECONDS = 5
_TIMES = {*PARTS, "step_seconds", "images_per_s", "rank_seconds_min", "rank_seconds_max", "slowest_rank"}
_NOT_SCALARS = {"step", "final", "checksum", "stopped_by"}


class TensorBoard:
    """A callback of ``fit`` that writes event files: ``callbacks=[tm.training.TensorBoard("runs/one/tensorboard")]``.

    folder: made where it is missing, with the first line. Where it has events already, the run goes on there: what was
    written of steps that come again is hidden by TensorBoard (a ``purge_step``).

    Each number of a line is a scalar at the line's step, under the name that ``tag`` gives; None is left out. A thread
    writes them: they are in the file some seconds later, and at the latest with ``close()`` or the end of the process.

    Raises OSError where the folder cannot be written.
    """

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)
        self._writer: Any = None
        self._at_exit: Any = None

    def __call__(self, line: Mapping[str, Any]) -> None:
        """Write one line of metrics."""
        step = int(line["step"])
        if self._writer is None:
            self._writer = _writer(self.folder, step)
            self._at_exit = weakref.finalize(self, self._writer.close)
        for name, value in line.items():
            if name not in _NOT_SCALARS and isinstance(value, (int, float)) and not isinstance(value, bool):
                self._writer.add_scalar(tag(name), value, step)

    def close(self) -> None:
        """Close the file; a line that comes after it begins another."""
        if self._writer is not None:
            self._at_exit()
            self._writer = None

    def __enter__(self) -> TensorBoard:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()


def tag(name: str) -> str:
    """A metric's name in TensorBoard: "train/loss", "train/learning_rate", "val/top1", "time/wait".

    What an evaluation gave stands under the evaluation's name, which goes up to the first underscore.
    """
    if name in _TIMES:
        return f"time/{name}"
    group, underscore, metric = name.partition("_")
    return f"{group}/{metric}" if underscore and name != "learning_rate" else f"train/{name}"


def _writer(folder: Path, step: int) -> Any:
    import tensorboardX  # takes a third of a second

    folder.mkdir(parents=True, exist_ok=True)
    goes_on = any(folder.glob("events.out.tfevents.*"))
    return tensorboardX.SummaryWriter(str(folder), purge_step=step if goes_on else None, flush_secs=_FLUSH_SECONDS)
