"""When a run ends, and which evaluation is the best so far."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from signal import Signals
from typing import Any

from theano_mgpu.training.state import Progress

__all__ = ["Limits", "judged"]


@dataclass(frozen=True)
class Limits:
    """``epochs`` and ``max_steps`` of the whole run, ``time_limit`` seconds from now on, ``patience`` evaluations."""

    epochs: float | None = None
    max_steps: int | None = None
    time_limit: float | None = None
    patience: int | None = None
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        for name in ("epochs", "max_steps", "time_limit", "patience"):
            value = getattr(self, name)
            if value is not None and (isinstance(value, bool) or not isinstance(value, (int, float)) or not value > 0):
                raise ValueError(f"fit(): '{name}' should be a positive number or None, not {value!r}.")
        if self.epochs is None and self.max_steps is None and self.time_limit is None:
            raise ValueError("fit(): give at least one of 'epochs', 'max_steps' and 'time_limit'; training has no end.")

    def finished(self, progress: Progress) -> str | None:
        """Why the run is finished, or None."""
        if self.epochs is not None and progress.epoch >= self.epochs:
            return "epochs"
        if self.max_steps is not None and progress.step >= self.max_steps:
            return "max_steps"
        if self.patience is not None and progress.since_best >= self.patience:
            return "patience"
        return None

    def asked(self, received: Signals | None) -> str | None:
        """Why the run should stop here, though it is not finished: a signal's name, "time_limit", or None."""
        if received is not None:
            return received.name
        out_of_time = self.time_limit is not None and time.monotonic() - self.started >= self.time_limit
        return "time_limit" if out_of_time else None

    def total_steps(self, progress: Progress) -> int | None:
        """How many steps the run will have, as far as it can be told from those that were taken."""
        totals = [] if self.max_steps is None else [int(self.max_steps)]
        if self.epochs is not None and progress.epoch:
            # 30 steps are 30 / 13 epochs, and 4 epochs then 52.00000000000001 steps.
            totals.append(math.ceil(round(progress.step * self.epochs / progress.epoch, 6)))
        return min(totals, default=None)


def judged(progress: Progress, evaluated: Mapping[str, Any], metric: str | None) -> dict[str, Any]:
    """What of ``progress`` changes with an evaluation. Losses are better when smaller, other metrics when larger.

    Raises ValueError where the evaluations do not give ``metric``.
    """
    if metric is None:
        return {}
    if metric not in evaluated:
        raise ValueError(f"fit(): best='{metric}' is not among what the evaluations give: {', '.join(evaluated)}.")
    value, sign = float(evaluated[metric]), -1 if metric.endswith("loss") else 1
    # The first evaluation is the best so far; one that is no number never is.
    if math.isfinite(value) and (progress.best is None or sign * value > sign * progress.best):
        return {"best": value, "best_step": progress.step, "since_best": 0}
    return {"since_best": progress.since_best + 1}
