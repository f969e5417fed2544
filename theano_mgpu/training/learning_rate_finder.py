"""A learning rate found by trying: a short run in which it grows from step to step."""

from __future__ import annotations

import math
from dataclasses import dataclass

from theano_mgpu.data.batches import BatchSource, batches_of
from theano_mgpu.errors import NonFiniteError
from theano_mgpu.step import Step
from theano_mgpu.store import ParameterStore
from theano_mgpu.training.metrics import numbers_of
from theano_mgpu.training.state import TrainingState

__all__ = ["RatesTried", "find_learning_rate"]

#: The weight of what came before in the smoothed loss, and how much worse than the best ends the search.
_SMOOTHING, _DIVERGED = 0.9, 4.0


@dataclass(frozen=True)
class RatesTried:
    """``rates`` and the smoothed ``losses`` that they gave; ``suggestion`` is a tenth of the rate of the lowest."""

    rates: tuple[float, ...]
    losses: tuple[float, ...]

    @property
    def suggestion(self) -> float:
        return self.rates[self.losses.index(min(self.losses))] / 10


def find_learning_rate(
    step: Step,
    batches: BatchSource,
    *,
    store: ParameterStore,
    lowest: float = 1e-6,
    highest: float = 10.0,
    steps: int = 100,
) -> RatesTried:
    """Try learning rates from ``lowest`` to ``highest``, a step each, growing by a factor; then undo it all.

    rate(i) = lowest * (highest / lowest) ** (i / (steps - 1))

    step: called with a batch's arrays and the rate; its outputs are "loss" and others, or the loss alone.
    batches: from the start on. store: as for ``fit``.

    It ends early where the smoothed loss is four times the lowest, or no number. The losses are exponential means of
    weight 0.9, corrected for their start. Every shared variable and generator is afterwards what it was.

    Raises ValueError for rates that are not positive and growing, for fewer than two steps, and where not even the
    first step gives a loss.

    Smith, "Cyclical learning rates for training neural networks", WACV 2017, section 3.3.
    """
    if not 0 < lowest < highest < math.inf:
        raise ValueError(
            f"find_learning_rate(): 'lowest' and 'highest' should be positive and growing, but are {lowest!r} and "
            f"{highest!r}."
        )
    if steps < 2:
        raise ValueError(f"find_learning_rate(): 'steps' should be at least 2, not {steps!r}.")
    state = TrainingState(step, store)
    before = state.copied()
    try:
        rates, losses = _tried(step, batches, [lowest * (highest / lowest) ** (i / (steps - 1)) for i in range(steps)])
    finally:
        state.restore(before)
    if not losses:
        raise ValueError(
            f"find_learning_rate(): the loss is no number at the first step, of rate {lowest:g}. Look at the data, and "
            "at the parameters' initial values."
        )
    return RatesTried(tuple(rates), tuple(losses))


def _tried(step: Step, batches: BatchSource, planned: list[float]) -> tuple[list[float], list[float]]:
    rates: list[float] = []
    losses: list[float] = []
    mean = 0.0
    source = batches_of(batches, 0, step.part if step.takes_parts else None)
    for count, (rate, batch) in enumerate(zip(planned, source, strict=False), start=1):
        try:
            loss = numbers_of(step(*batch.arrays, rate))["loss"]
        except NonFiniteError:
            break
        mean = _SMOOTHING * mean + (1 - _SMOOTHING) * loss
        smoothed = mean / (1 - _SMOOTHING**count)
        if not math.isfinite(smoothed) or (losses and smoothed > _DIVERGED * min(losses)):
            break
        rates.append(rate)
        losses.append(smoothed)
    return rates, losses
