"""What rules are composed of: changes to gradients before a rule, changes to updates after it."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from theano_mgpu.updates.arguments import (
    Number,
    Updates,
    cast,
    check_fractions,
    check_gradients,
    check_non_negative,
    check_params,
    decays,
    one_minus,
    state,
)

__all__ = [
    "ShadowUpdates",
    "apply_momentum",
    "apply_nesterov",
    "apply_weight_decay",
    "clip_by_global_norm",
    "ema",
]


def apply_momentum(
    updates: Mapping[SharedVariable, TensorVariable],
    params: Iterable[SharedVariable] | None = None,
    momentum: Number = 0.9,
    learning_rate: Number = 1.0,
) -> Updates:
    """Updates with momentum added to their steps.

    velocity := momentum * velocity + (param - update)
    param    := param - learning_rate * velocity

    ``param - update`` is the step down that ``updates`` takes: the gradient, for ``sgd`` at a learning rate of 1. Then
    ``learning_rate`` acts on the velocity, as in PyTorch, and a change of it takes effect at once. Applied to ``sgd``
    at its own learning rate, with this one left at 1, the velocity contains the learning rate, as in Lasagne. While the
    learning rate is constant the two agree.

    ``params`` (default: all of ``updates``) says which variables get momentum; the others' updates are kept.
    Returns a new dict, the velocities' updates included. Raises ValueError for a parameter without an update.
    """
    check_non_negative("apply_momentum", learning_rate=learning_rate)
    check_fractions("apply_momentum", momentum=momentum)
    updates, params = _updates_and_params("apply_momentum", updates, params)
    return updates | with_momentum({param: _step(param, updates[param]) for param in params}, momentum, learning_rate)


def with_momentum(steps: Updates, momentum: Number, learning_rate: Number) -> Updates:
    """The updates of ``apply_momentum``; ``steps`` has the step down for each parameter."""
    updates: Updates = {}
    for param, step in steps.items():
        velocity = state(param, "velocity")
        updates[velocity] = cast(momentum, param) * velocity + step
        updates[param] = param - cast(learning_rate, param) * updates[velocity]
    return updates


def apply_nesterov(
    updates: Mapping[SharedVariable, TensorVariable],
    params: Iterable[SharedVariable] | None = None,
    momentum: Number = 0.9,
    learning_rate: Number = 1.0,
) -> Updates:
    """Updates with Nesterov momentum added to their steps.

    velocity := momentum * velocity + (param - update)
    param    := param - learning_rate * (momentum * velocity + (param - update))

    with the new velocity in the second line. Arguments, result and errors as for ``apply_momentum``.
    """
    check_non_negative("apply_nesterov", learning_rate=learning_rate)
    check_fractions("apply_nesterov", momentum=momentum)
    updates, params = _updates_and_params("apply_nesterov", updates, params)
    return updates | with_nesterov({param: _step(param, updates[param]) for param in params}, momentum, learning_rate)


def with_nesterov(steps: Updates, momentum: Number, learning_rate: Number) -> Updates:
    """The updates of ``apply_nesterov``; ``steps`` has the step down for each parameter."""
    updates: Updates = {}
    for param, step in steps.items():
        velocity, inertia = state(param, "velocity"), cast(momentum, param)
        updates[velocity] = inertia * velocity + step
        updates[param] = param - cast(learning_rate, param) * (inertia * updates[velocity] + step)
    return updates


def _updates_and_params(
    rule: str, updates: Mapping[SharedVariable, TensorVariable], params: Iterable[SharedVariable] | None
) -> tuple[Updates, list[SharedVariable]]:
    updates = dict(updates)
    checked = check_params(rule, updates if params is None else params)
    for param in checked:
        if param not in updates:
            raise ValueError(
                f"{rule}(): '{param}' is in 'params' but has no update; pass the updates of the rule before."
            )
    return updates, checked


def _step(param: SharedVariable, update: TensorVariable) -> TensorVariable:
    """``param - update``, in the parameter's dtype."""
    # Written out, (param - (param - step)) would round the step to the parameter's last digit.
    if update.owner is not None and update.owner.op == pt.sub and update.owner.inputs[0] is param:
        step = update.owner.inputs[1]
        if step.type.ndim == param.type.ndim:
            return step.astype(param.type.dtype)
    return (param - update).astype(param.type.dtype)


def apply_weight_decay(
    loss_or_grads: Any, params: Iterable[SharedVariable], weight_decay: Number
) -> list[TensorVariable]:
    """Gradients with weight decay as an L2 penalty.

    gradient + weight_decay * param        the gradient of  loss + weight_decay / 2 * |param|^2

    Parameters with ``param.tag.decay`` False keep their gradients. Under momentum this is PyTorch's ``weight_decay``;
    ``adamw`` decays the parameters themselves instead.

    Returns a list of gradients in the order of ``params``, for a rule's first argument.
    """
    check_non_negative("apply_weight_decay", weight_decay=weight_decay)
    params = check_params("apply_weight_decay", params)
    gradients = check_gradients("apply_weight_decay", loss_or_grads, params)
    return [
        gradient + cast(weight_decay, param) * param if decays(param) else gradient
        for gradient, param in zip(gradients, params, strict=True)
    ]


def clip_by_global_norm(grads: Sequence[TensorVariable], max_norm: Number) -> list[TensorVariable]:
    """Gradients scaled down together where their common norm exceeds ``max_norm``.

    norm     = sqrt(sum over all gradients of |gradient|^2)
    gradient * min(1, max_norm / (norm + 1e-6))

    ``grads`` are the whole batch's, ``tm.grad(loss, params)``: clipping each shard's and averaging afterwards is
    another thing. The numbers are those of ``torch.nn.utils.clip_grad_norm_``. Returns a list in the order of
    ``grads``, dtypes kept.

    Pascanu et al., "On the difficulty of training recurrent neural networks", ICML 2013, algorithm 1.
    """
    check_non_negative("clip_by_global_norm", max_norm=max_norm)
    if not isinstance(grads, (list, tuple)):
        raise ValueError(
            f"clip_by_global_norm(): 'grads' should be a list of gradients, but is '{grads}': tm.grad first."
        )
    for index, gradient in enumerate(grads):
        if not isinstance(gradient, Variable) or not isinstance(gradient.type, TensorType):
            raise ValueError(f"clip_by_global_norm(): grads[{index}] is {gradient}, not a symbolic array.")
    if not grads:
        return []
    norm = pt.sqrt(pt.add(*[pt.sum(pt.sqr(gradient)) for gradient in grads]))
    # The scale is at least as precise as the widest gradient, and cast to each one's dtype.
    scale = pt.minimum(cast(1, norm), cast(max_norm, norm) / (norm + cast(1e-6, norm)))
    return [gradient * scale.astype(gradient.dtype) for gradient in grads]


class ShadowUpdates(Updates):
    """Updates of shadow variables; ``shadows`` maps each parameter to its shadow, as ``givens=`` takes it."""

    def __init__(self, updates: Updates, shadows: dict[SharedVariable, SharedVariable]) -> None:
        super().__init__(updates)
        self.shadows = shadows


def ema(
    updates: Mapping[SharedVariable, TensorVariable], params: Iterable[SharedVariable], decay: Number = 0.999
) -> ShadowUpdates:
    """An exponential moving average of parameters, to evaluate with.

    shadow := decay * shadow + (1 - decay) * update

    with ``updates[param]``, the parameter's *new* value, or the parameter itself where ``updates`` leaves it alone. A
    shadow starts at the value that its parameter has when ``ema`` is called, and is named ``"{param}.ema"``.

        average = tm.updates.ema(updates, params, decay=0.999)
        step = tm.function([x, y], tm.average(loss), updates=updates | average)
        evaluate = tm.function([x], logits, givens=average.shadows)    # the same graph on the averaged parameters

    Returns an ordered dict, shadow to its new value, in the order of ``params``; its attribute ``shadows`` maps each
    parameter to its shadow.

    Polyak and Juditsky, "Acceleration of stochastic approximation by averaging", SIAM J. Control Optim. 30 (1992).
    """
    check_fractions("ema", decay=decay)
    updates, params = dict(updates), check_params("ema", params)
    shadows, shadow_updates = {}, {}
    for param in params:
        dtype = param.type.dtype
        value = param.get_value(borrow=False)
        shadow = pytensor.shared(value, name=f"{param.name or 'param'}.ema", shape=param.type.shape)
        new_value = param.type.filter_variable(updates.get(param, param).astype(dtype))
        shadows[param] = shadow
        shadow_updates[shadow] = cast(decay, param) * shadow + one_minus(decay, param) * new_value
    return ShadowUpdates(shadow_updates, shadows)
