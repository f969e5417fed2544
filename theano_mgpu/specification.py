"""What ``tm.function`` is given besides inputs, checked: the outputs' form, updates, givens, options."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.compile.io import Out
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.graph.replace import clone_replace
from pytensor.graph.traversal import ancestors
from pytensor.tensor.type import TensorType

from theano_mgpu.arguments import Argument
from theano_mgpu.resident_data import ResidentData

__all__ = [
    "Form",
    "check_used",
    "pairs",
    "parse_updates",
    "positive",
    "reject_unknown",
    "require_inputs",
    "require_one_of",
    "with_default_updates",
    "with_givens",
]


class Form:
    """How outputs were given (nothing, one variable, a list, a dict), so that results come back alike."""

    def __init__(self, outputs: Any) -> None:
        self._given = outputs
        if outputs is None:
            given: list[Any] = []
        elif isinstance(outputs, Mapping):
            given = list(outputs.values())
        elif isinstance(outputs, (list, tuple)):
            given = list(outputs)
        else:
            given = [outputs]
        self.variables = [_output(variable, position) for position, variable in enumerate(given)]

    def filled(self, values: Sequence[np.ndarray]) -> Any:
        if self._given is None:
            return None
        if isinstance(self._given, Mapping):
            return dict(zip(self._given, values, strict=True))
        if isinstance(self._given, (list, tuple)):
            return list(values)
        return values[0]


def _output(given: Any, position: int) -> Variable:
    variable = given.variable if isinstance(given, Out) else given
    if not isinstance(variable, Variable):
        try:
            variable = pt.as_tensor_variable(variable)
        except (TypeError, ValueError, NotImplementedError) as error:
            raise TypeError(f"outputs[{position}]: expected a symbolic variable, got {given!r}.") from error
    if not isinstance(variable.type, TensorType):
        raise TypeError(f"outputs[{position}]: expected a tensor, got {variable} of type {variable.type}.")
    return variable


def pairs(given: Any) -> list[Any]:
    """A dict's items, or the pairs as they were given; none for None."""
    return list(given.items() if isinstance(given, Mapping) else given or ())


def parse_updates(updates: Any) -> dict[SharedVariable, Variable]:
    """Updates as an ordered dict, every new value of its variable's type."""
    parsed: dict[SharedVariable, Variable] = {}
    for pair in pairs(updates):
        if not isinstance(pair, (list, tuple)) or len(pair) != 2:
            raise TypeError(f"updates: expected a dict or pairs (shared variable, new value), got {pair!r} among them.")
        variable, new_value = pair
        if not isinstance(variable, SharedVariable):
            raise TypeError(f"updates: expected a shared variable to update, got {variable!r}.")
        if isinstance(variable, ResidentData):
            raise TypeError(
                f"updates: {variable.name or variable} is resident data, which steps only read. Keep what a step "
                f"changes in pytensor.shared(...), or call set_value between steps."
            )
        if variable in parsed:
            raise ValueError(f"updates: {variable.name or variable} is updated twice; give it one new value.")
        parsed[variable] = _of_type(variable, new_value)
    return parsed


def _of_type(variable: SharedVariable, new_value: Any) -> Variable:
    try:
        return variable.type.filter_variable(new_value, allow_convert=True)
    except TypeError as error:
        given = getattr(new_value, "type", type(new_value).__name__)
        dtype = getattr(variable.type, "dtype", None)
        remedy = f" Cast it with .astype('{dtype}') or reduce it to that shape." if dtype else ""
        raise TypeError(
            f"updates: the new value of {variable.name or variable} is {given}, but the variable is {variable.type}."
            f"{remedy}"
        ) from error


def with_givens(graph: Sequence[Variable], givens: Any, inputs: Sequence[Variable]) -> list[Variable]:
    """The graph with the variables of ``givens`` replaced."""
    replace: dict[Variable, Variable] = {}
    for variable, value in pairs(givens):
        if not isinstance(variable, Variable):
            raise TypeError(f"givens: expected a variable to replace, got {variable!r}.")
        if variable in inputs:
            raise ValueError(
                f"givens: {variable} is an input, so it cannot be replaced too; take it out of one of both."
            )
        if variable in replace:
            raise ValueError(f"givens: {variable} is replaced twice; give it one value.")
        try:
            replace[variable] = variable.type.filter_variable(value, allow_convert=True)
        except TypeError as error:
            raise TypeError(
                f"givens: {variable} is {variable.type}, but its replacement is "
                f"{getattr(value, 'type', type(value).__name__)}. Cast or reshape the replacement."
            ) from error
    return list(clone_replace(list(graph), replace=replace)) if replace and graph else list(graph)


def with_default_updates(
    outputs: Sequence[Variable], updates: Mapping[SharedVariable, Variable], givens: Any, inputs: Sequence[Variable]
) -> dict[SharedVariable, Variable]:
    """The updates and, as in ``pytensor.function``, those that shared variables bring along (``RandomStream``'s do)."""
    complete = dict(updates)
    while True:
        needed = ancestors([*outputs, *complete.values()])
        found = {
            v: v.default_update
            for v in needed
            if isinstance(v, SharedVariable) and v not in complete and getattr(v, "default_update", None) is not None
        }
        if not found:
            return complete
        complete |= zip(found, with_givens(list(found.values()), givens, inputs), strict=True)


def check_used(
    arguments: Sequence[Argument], graph: Sequence[Variable], on_unused_input: str, computed: Sequence[Variable] = ()
) -> None:
    """Every input is used by an output or update; and all that they need is an input, computed, shared or constant."""
    needed = set(ancestors(graph))
    unused = [a.label(i) for i, a in enumerate(arguments) if a.variable not in needed]
    if unused and on_unused_input != "ignore":
        message = (
            f"inputs: {', '.join(unused)} is not used by any output or update. Take it out, or use "
            f"on_unused_input='ignore'."
        )
        if on_unused_input == "raise":
            raise ValueError(message)
        warnings.warn(message, stacklevel=3)
    inputs = {*(a.variable for a in arguments), *computed}
    loose = [
        v for v in needed if v.owner is None and v not in inputs and not isinstance(v, SharedVariable) and _is_free(v)
    ]
    if loose:
        names = ", ".join(sorted(str(v) for v in loose))
        raise ValueError(
            f"inputs: the graph needs {names}, which is no input. Add it to inputs, or replace it by givens."
        )


def _is_free(variable: Variable) -> bool:
    return not hasattr(variable, "data")  # a constant has data


def require_one_of(option: str, given: Any, known: Sequence[str]) -> None:
    if given not in known:
        raise ValueError(f"{option}: expected one of {', '.join(map(repr, known))}, got {given!r}.")


def positive(option: str, given: Any, otherwise: str = "") -> int:
    if isinstance(given, bool) or not isinstance(given, (int, np.integer)) or given < 1:
        raise ValueError(f"{option}: expected a whole number of at least 1{otherwise}, got {given!r}.")
    return int(given)


def require_inputs(option: str, given: Sequence[Any], inputs: Sequence[Variable]) -> None:
    if isinstance(given, Variable) or not isinstance(given, (list, tuple, set, frozenset)):
        raise TypeError(f"{option}: expected a list of inputs, got {given!r}.")
    for variable in given:
        if variable not in inputs:
            raise ValueError(f"{option}: {variable} is not among the inputs.")


def reject_unknown(options: Mapping[str, Any]) -> None:
    """Errors for what ``pytensor.function`` takes and we do not, each with the reason."""
    reasons = {
        "mode": "a step is always compiled by XLA; for another mode use pytensor.function on the same graph.",
        "profile": "use jax.profiler around the calls.",
        "no_default_updates": "default updates are always applied, as by pytensor.function.",
    }
    for option in options:
        raise TypeError(f"function(): {option}= is not supported: {reasons.get(option, 'it is not known.')}")
