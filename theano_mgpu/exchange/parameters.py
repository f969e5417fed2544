"""The shared variables that ranks exchange, as one vector for each dtype."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pytensor
from pytensor.compile.sharedvalue import SharedVariable

from theano_mgpu.exchange.ranks import Ranks
from theano_mgpu.updates.arguments import check_params

__all__ = ["Parameters", "parameters_of"]


class Parameters:
    """Shared variables by name, whose values are read and written together, one vector a dtype."""

    def __init__(self, variables: Mapping[str, SharedVariable]) -> None:
        self.variables = dict(variables)
        self._by_dtype: dict[str, list[SharedVariable]] = {}
        for variable in self.variables.values():
            self._by_dtype.setdefault(variable.type.dtype, []).append(variable)

    def get(self) -> list[np.ndarray]:
        """New vectors."""
        return [
            np.concatenate([np.asarray(variable.get_value(borrow=True)).reshape(-1) for variable in variables])
            for variables in self._by_dtype.values()
        ]

    def set(self, vectors: Iterable[np.ndarray]) -> None:
        for vector, variables in zip(vectors, self._by_dtype.values(), strict=True):
            start = 0
            for variable in variables:
                shape = variable.get_value(borrow=True).shape
                end = start + int(np.prod(shape))
                variable.set_value(vector[start:end].reshape(shape))
                start = end

    def copies(self, called: str) -> Parameters:
        """New variables with the same values, each named after its own: ``"{name}.{called}"``."""
        return Parameters(
            {
                f"{name}.{called}": pytensor.shared(
                    variable.get_value(borrow=False), name=f"{name}.{called}", shape=variable.type.shape
                )
                for name, variable in self.variables.items()
            }
        )

    def zeros(self, called: str) -> Parameters:
        """New variables of zeros."""
        copies = self.copies(called)
        copies.set(np.zeros_like(vector) for vector in copies.get())
        return copies


def parameters_of(rule: str, step: Any, params: Iterable[SharedVariable] | None, ranks: Ranks) -> Parameters:
    """What ``rule`` exchanges, checked to be alike on all ranks: ``params``, or what the step updates of a store."""
    checked = check_params(rule, _in_a_store(step) if params is None else params)
    if not checked:
        raise ValueError(
            f"{rule}(): there is nothing to exchange: "
            + (
                "the step updates no parameter of a ParameterStore; name the variables, params=[...]."
                if params is None
                else "'params' is empty."
            )
        )
    parameters = Parameters(_named(checked))
    _check_alike(rule, parameters, ranks)
    return parameters


def _in_a_store(step: Any) -> list[SharedVariable]:
    """What a step updates and a store made; a store says of its parameters alone whether they are trainable."""
    updated = step.cut.updated if hasattr(step, "cut") else []
    return [variable for variable in updated if hasattr(variable.tag, "trainable")]


def _named(variables: Sequence[SharedVariable]) -> dict[str, SharedVariable]:
    """By name; one without a name, or with another's, is told apart by its place."""
    named: dict[str, SharedVariable] = {}
    for place, variable in enumerate(variables):
        name = variable.name or "param"
        named[name if variable.name and name not in named else f"{name}#{place}"] = variable
    return named


def _check_alike(rule: str, parameters: Parameters, ranks: Ranks) -> None:
    mine = {
        name: f"{variable.type.dtype} {variable.get_value(borrow=True).shape}"
        for name, variable in parameters.variables.items()
    }
    first, *others = ranks.gathered(mine)
    for rank, theirs in enumerate(others, start=1):
        for name in [*first, *theirs]:
            if first.get(name) != theirs.get(name):
                raise ValueError(
                    f"{rule}(): '{name}' is {first.get(name, 'not among the parameters')} on rank 0, but "
                    f"{theirs.get(name, 'not among the parameters')} on rank {rank}. Build the same network on every "
                    f"rank and exchange the same parameters."
                )
        if list(first) != list(theirs):
            raise ValueError(
                f"{rule}(): rank {rank} has 'params' in another order than rank 0; give them in one order."
            )
