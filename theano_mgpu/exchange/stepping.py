"""A rank's step with its exchange around it, called as the step is."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytensor
from pytensor.compile.sharedvalue import SharedVariable

from theano_mgpu.exchange.parameters import Parameters
from theano_mgpu.exchange.ranks import Ranks

__all__ = ["Elastic", "Exchange", "Rule"]

#: What is done before and after step t (from 0): a generator function that yields once, where the step runs.
Rule = Callable[[int], Iterator[None]]


class Exchange:
    """``step``, and what its rank exchanges with the others: called as the step is, giving what the step gives.

    ``state``: the shared variables that the rule keeps, by name, the count of steps among them. Each rank has its own;
        a checkpoint that is to go on exactly holds them beside the parameters, for as many ranks.
    ``bytes_sent``: by this rank, to the others, in exchanges so far.
    """

    def __init__(self, step: Callable[..., Any], ranks: Ranks, rule: Rule, *kept: Parameters | SharedVariable) -> None:
        self.step = step
        self._ranks = ranks
        self._around = contextlib.contextmanager(rule)
        self._steps = pytensor.shared(np.array(0, np.int64), name="exchange.steps")
        self.state: dict[str, SharedVariable] = {"exchange.steps": self._steps}
        for one in kept:
            self.state |= one.variables if isinstance(one, Parameters) else {one.name: one}

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """One step, with the exchange that is due; where the step raises, nothing has been exchanged."""
        steps = int(self._steps.get_value())
        with self._around(steps):
            outputs = self.step(*args, **kwargs)
        self._steps.set_value(np.array(steps + 1, np.int64))
        return outputs

    @property
    def bytes_sent(self) -> int:
        return self._ranks.bytes_sent


class Elastic(Exchange):
    """What ``easgd`` gives. ``centre`` maps each parameter to the variable of its centre, as ``givens=`` takes it."""

    def __init__(
        self, step: Callable[..., Any], ranks: Ranks, rule: Rule, parameters: Parameters, centre: Parameters
    ) -> None:
        super().__init__(step, ranks, rule, centre)
        self.centre = dict(zip(parameters.variables.values(), centre.variables.values(), strict=True))
