"""What every update rule is given, checked: parameters, their gradients, hyperparameters, and the state it keeps."""

from __future__ import annotations

import functools
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.gradient import DisconnectedInputError
from pytensor.graph.basic import Variable
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from theano_mgpu import averages

__all__ = [
    "Number",
    "Updates",
    "cast",
    "check_fractions",
    "check_gradients",
    "check_non_negative",
    "check_params",
    "decays",
    "one_minus",
    "state",
]

#: A hyperparameter: a number, a symbolic scalar, or a scalar shared variable.
Number = Any

#: Shared variable to new value, in order.
Updates = dict[SharedVariable, TensorVariable]


def check_params(rule: str, params: Iterable[SharedVariable]) -> list[SharedVariable]:
    """``params`` as a list: shared variables of a floating dtype, each once."""
    if isinstance(params, Variable):
        raise ValueError(f"{rule}(): 'params' should be a list of shared variables; put '{params}' into a list.")
    checked: list[SharedVariable] = []
    for index, param in enumerate(params):
        if not isinstance(param, SharedVariable) or not isinstance(param.type, TensorType):
            raise ValueError(
                f"{rule}(): params[{index}], '{param}', is not a shared variable with an array in it. Pass the "
                "variables that pytensor.shared(...) or store.param(...) returned, not expressions of them."
            )
        if not param.type.dtype.startswith(("float", "bfloat")):
            raise ValueError(
                f"{rule}(): '{param}' has dtype {param.type.dtype}; only floating parameters can be updated."
            )
        if any(param is other for other in checked):
            raise ValueError(f"{rule}(): '{param}' is in 'params' twice; each parameter has one update.")
        checked.append(param)
    return checked


def check_gradients(rule: str, loss_or_grads: Any, params: Sequence[SharedVariable]) -> list[TensorVariable]:
    """One gradient per parameter, in the parameter's dtype: the given ones, or those of the given loss."""
    if not isinstance(loss_or_grads, (list, tuple)):
        return _gradients_of_loss(rule, loss_or_grads, params)
    if len(loss_or_grads) != len(params):
        raise ValueError(f"{rule}(): {len(loss_or_grads)} gradients for {len(params)} parameters; give one for each.")
    return [_matching(rule, gradient, param) for gradient, param in zip(loss_or_grads, params, strict=True)]


def _gradients_of_loss(rule: str, loss: Any, params: Sequence[SharedVariable]) -> list[TensorVariable]:
    if not isinstance(loss, Variable) or not isinstance(loss.type, TensorType) or loss.type.ndim != 0:
        raise ValueError(
            f"{rule}(): 'loss_or_grads' should be a scalar loss or a list of gradients, but is '{loss}' "
            f"({getattr(loss, 'type', type(loss).__name__)}). Losses per example need .mean()."
        )
    try:
        gradients = averages.grad(loss, list(params))
    except DisconnectedInputError as error:
        found = pytensor.grad(loss, list(params), return_disconnected="none", disconnected_inputs="ignore")
        names = ", ".join(f"'{param}'" for param, gradient in zip(params, found, strict=True) if gradient is None)
        raise ValueError(
            f"{rule}(): the loss does not depend on {names}. Leave out of 'params' what it does not use, or pass the "
            "gradients themselves, zeros included."
        ) from error
    return [_matching(rule, gradient, param) for gradient, param in zip(gradients, params, strict=True)]


def _matching(rule: str, gradient: Any, param: SharedVariable) -> TensorVariable:
    """``gradient`` with the parameter's dtype and number of axes."""
    if gradient is None or (isinstance(gradient, Variable) and not isinstance(gradient.type, TensorType)):
        raise ValueError(
            f"{rule}(): the gradient with respect to '{param}' is {gradient if gradient is None else gradient.type}: "
            "the loss does not depend on it. Leave the parameter out, or give zeros."
        )
    gradient = pt.as_tensor_variable(gradient)
    shape = param.get_value(borrow=True).shape
    known = gradient.type.shape
    if len(known) != len(shape) or any(k not in (None, n) for k, n in zip(known, shape, strict=True)):
        raise ValueError(
            f"{rule}(): the gradient with respect to '{param}' has shape {known}, the parameter {shape}. They have to "
            "agree; are gradients and parameters in the same order?"
        )
    # Adds a shape check only where the parameter's static shape says more than the gradient's.
    return param.type.filter_variable(gradient.astype(param.type.dtype))


def check_non_negative(rule: str, **values: Number) -> None:
    """Numbers are at least 0; symbolic values are scalars."""
    for name, value in values.items():
        number = _number(rule, name, value)
        if number is not None and not 0 <= number < np.inf:
            raise ValueError(f"{rule}(): '{name}' is {number:g}; it should be finite and at least 0.")


def check_fractions(rule: str, **values: Number) -> None:
    """Numbers are in [0, 1); symbolic values are scalars."""
    for name, value in values.items():
        number = _number(rule, name, value)
        if number is not None and not 0 <= number < 1:
            raise ValueError(f"{rule}(): '{name}' is {number:g}; it should be in [0, 1), at least 0 and less than 1.")


def _number(rule: str, name: str, value: Number) -> float | None:
    """The number, or None for a symbolic scalar, whose value is not known yet."""
    if isinstance(value, Variable):
        if not isinstance(value.type, TensorType) or value.type.ndim != 0:
            raise ValueError(f"{rule}(): '{name}' should be a scalar, but '{value}' is {value.type}.")
        return None
    if isinstance(value, (int, float, np.number, np.ndarray)) and np.ndim(value) == 0:
        return float(value)
    raise ValueError(
        f"{rule}(): '{name}' should be a number, a symbolic scalar or a scalar shared variable, but is {value!r}. "
        "A schedule is called with the step's number, and its result passed to the step."
    )


def cast(value: Number, like: TensorVariable) -> TensorVariable:
    """``value`` in the dtype of ``like`` (a bare 1e-6 would make a float32 expression float64), for all its entries."""
    dtype, ndim = like.type.dtype, like.type.ndim
    if isinstance(value, Variable):
        return value.astype(dtype)
    return _constant(np.asarray(value, dtype=dtype).item(), dtype, ndim)


def one_minus(value: Number, like: TensorVariable) -> TensorVariable:
    """``1 - value``, subtracted before rounding where it is a number: 1 - 0.999 in float32 is off by 5e-5."""
    if isinstance(value, Variable):
        return 1 - cast(value, like)
    return cast(1 - float(value), like)


@functools.lru_cache(maxsize=256)
def _constant(value: float, dtype: str, ndim: int) -> TensorVariable:
    """With the axes at once: PyTensor would give them to a number by a node of its own in every expression."""
    return pt.constant(np.full((1,) * ndim, value, dtype=dtype))


def decays(param: SharedVariable) -> bool:
    """Whether weight decay applies to ``param``: unless ``param.tag.decay`` is False."""
    return getattr(param.tag, "decay", True) is not False


def state(param: SharedVariable, name: str) -> SharedVariable:
    """A new shared variable of zeros like ``param``, called ``"{param}.{name}"``."""
    zeros = np.zeros(param.get_value(borrow=True).shape, dtype=param.type.dtype)
    return pytensor.shared(zeros, name=f"{param.name or 'param'}.{name}", shape=param.type.shape)
