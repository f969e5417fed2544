"""Learning rates as functions of the step's number: ``step(images, labels, schedule(i))``.

A schedule is a plain function of an integer, counted from 0, that returns a float. It runs on the host, before the step
that it is an input of, so that nothing is compiled again and a resumed run needs the step's number alone.

Warm-up multiplies by ``(step + 1) / (warmup_steps + 1)`` until step ``warmup_steps``, the first at full rate: no step
is wasted on a rate of zero (Goyal et al., "Accurate, large minibatch SGD", arXiv 1706.02677, section 2.2). With
``warmup_start``, the factor of step 0, it grows from that one in equal steps instead.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from collections.abc import Callable, Sequence
from itertools import pairwise
from numbers import Integral, Real

__all__ = ["Schedule", "constant", "held", "linear_warmup", "polynomial", "step_decay", "warmup_cosine"]

Schedule = Callable[[int], float]


def constant(value: float) -> Schedule:
    """``value`` at every step."""
    _check_rates("constant", value=value)

    def rate(step: int) -> float:
        _check_step("constant", step)
        return float(value)

    return rate


def warmup_cosine(
    peak: float, total_steps: int, warmup_steps: int = 0, final: float = 0.0, warmup_start: float | None = None
) -> Schedule:
    """A linear warm-up to ``peak``, then half a cosine down to ``final`` at ``total_steps``, and ``final`` after it.

    final + (peak - final) * (1 + cos(pi * (step - warmup_steps) / (total_steps - warmup_steps))) / 2

    Raises ValueError where a rate is negative or ``total_steps`` is not greater than ``warmup_steps``.

    Loshchilov and Hutter, "SGDR: stochastic gradient descent with warm restarts", ICLR 2017, eq. 5, without restarts.
    """
    _check_rates("warmup_cosine", peak=peak, final=final)
    _check_lengths("warmup_cosine", total_steps, warmup_steps)

    def rate(step: int) -> float:
        _check_step("warmup_cosine", step)
        part = _part_done(step, total_steps, warmup_steps)
        return final + (peak - final) * (1 + math.cos(math.pi * part)) / 2

    return linear_warmup(rate, warmup_steps, warmup_start)


def step_decay(
    base: float,
    boundaries: Sequence[int],
    factor: float = 0.1,
    warmup_steps: int = 0,
    warmup_start: float | None = None,
) -> Schedule:
    """``base``, multiplied by ``factor`` from each of the ``boundaries`` on.

    base * factor ** (number of boundaries <= step)

    ``boundaries`` are step numbers from the start of training, warm-up included. Raises ValueError where a rate is
    negative or boundaries do not increase.
    """
    _check_rates("step_decay", base=base, factor=factor)
    _check_count("step_decay", warmup_steps=warmup_steps)
    boundaries = list(boundaries)
    if any(later <= earlier for earlier, later in pairwise(boundaries)):
        raise ValueError(f"step_decay(): 'boundaries' should increase, but are {boundaries}.")

    def rate(step: int) -> float:
        _check_step("step_decay", step)
        return float(base * factor ** bisect_right(boundaries, step))

    return linear_warmup(rate, warmup_steps, warmup_start)


def polynomial(
    base: float,
    total_steps: int,
    power: float = 1.0,
    final: float = 0.0,
    warmup_steps: int = 0,
    warmup_start: float | None = None,
) -> Schedule:
    """A linear warm-up to ``base``, then a power of the steps left down to ``final`` at ``total_steps``, and after it.

    final + (base - final) * (1 - (step - warmup_steps) / (total_steps - warmup_steps)) ** power

    Raises ValueError where a rate is negative, ``power`` is not positive or ``total_steps`` is not greater than
    ``warmup_steps``.
    """
    _check_rates("polynomial", base=base, final=final, power=power)
    _check_lengths("polynomial", total_steps, warmup_steps)
    if power == 0:
        raise ValueError("polynomial(): 'power' is 0; it should be positive. A constant rate is constant().")

    def rate(step: int) -> float:
        _check_step("polynomial", step)
        part = _part_done(step, total_steps, warmup_steps)
        return float(final + (base - final) * (1 - part) ** power)

    return linear_warmup(rate, warmup_steps, warmup_start)


def linear_warmup(schedule: Schedule, warmup_steps: int, start: float | None = None) -> Schedule:
    """``schedule`` with a linear warm-up in front: its first ``warmup_steps`` rates are scaled up.

    schedule(step) * min(1, (step + 1) / (warmup_steps + 1))
    schedule(step) * min(1, start + (1 - start) * step / warmup_steps)          where ``start`` is given

    The steps are not shifted: ``schedule`` sees the same numbers. Raises ValueError where it is no function,
    ``warmup_steps`` is negative, or ``start`` is not between 0 and 1.
    """
    if not callable(schedule):
        raise ValueError(f"linear_warmup(): 'schedule' should be a function of the step, but is {schedule!r}.")
    _check_count("linear_warmup", warmup_steps=warmup_steps)
    if start is not None and not 0 <= start <= 1:
        raise ValueError(f"linear_warmup(): 'start' is {start!r}; it should lie between 0 and 1.")

    def rate(step: int) -> float:
        _check_step("linear_warmup", step)
        if step >= warmup_steps:
            return float(schedule(step))
        factor = (step + 1) / (warmup_steps + 1) if start is None else start + (1 - start) * step / warmup_steps
        return float(schedule(step) * factor)

    return rate


def held(schedule: Schedule, every: int) -> Schedule:
    """``schedule`` in stairs: looked up at every ``every``-th step and held until the next, such as once an epoch.

    schedule(step - step % every)

    Raises ValueError where ``every`` is not positive.
    """
    _check_count("held", every=every)
    if every == 0:
        raise ValueError("held(): 'every' is 0; it should be an integer of at least 1.")

    def rate(step: int) -> float:
        _check_step("held", step)
        return schedule(step - step % every)

    return rate


def _part_done(step: int, total_steps: int, warmup_steps: int) -> float:
    """The part of the steps after warm-up that lies behind, from 0 to 1."""
    return min(max((step - warmup_steps) / (total_steps - warmup_steps), 0.0), 1.0)


def _check_step(schedule: str, step: int) -> None:
    if not isinstance(step, Integral):
        raise TypeError(
            f"{schedule}(): the step should be an integer, but is {step!r}. Schedules run on the host: make the "
            "learning rate an input of the step function and call it with schedule(i)."
        )
    if step < 0:
        raise ValueError(f"{schedule}(): the step is {step}; steps are counted from 0.")


def _check_rates(schedule: str, **values: float) -> None:
    for name, value in values.items():
        if not isinstance(value, Real) or not 0 <= value < math.inf:
            raise ValueError(f"{schedule}(): '{name}' is {value!r}; it should be a finite number of at least 0.")


def _check_count(schedule: str, **values: int) -> None:
    for name, value in values.items():
        if not isinstance(value, Integral) or value < 0:
            raise ValueError(f"{schedule}(): '{name}' is {value!r}; it should be an integer of at least 0.")


def _check_lengths(schedule: str, total_steps: int, warmup_steps: int) -> None:
    _check_count(schedule, total_steps=total_steps, warmup_steps=warmup_steps)
    if total_steps <= warmup_steps:
        raise ValueError(
            f"{schedule}(): 'total_steps' is {total_steps} and 'warmup_steps' {warmup_steps}; the total includes the "
            "warm-up and should be greater."
        )
