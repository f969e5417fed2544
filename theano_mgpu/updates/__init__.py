"""Update rules: symbolic expressions for the new values of shared variables.

A rule takes ``(loss_or_grads, params, learning_rate, ...)`` and returns an ordered dict, shared variable to new value,
that ``tm.function(updates=...)`` and ``pytensor.function(updates=...)`` take alike.

loss_or_grads:
    The scalar mean loss, whose gradients are then averaged over the shards (``tm.grad``), or a list of gradients, one
    per parameter and of its shape.
params:
    Shared variables of a floating dtype, of any shape.
learning_rate and every other hyperparameter:
    A number, a symbolic scalar or a scalar shared variable, of any dtype. It is cast to each parameter's dtype, so
    that a float32 parameter stays float32.

State (velocities, moments, step counts) lives in new shared variables that start at zero, have the parameter's shape
and dtype and are named after it: ``conv1.weight.velocity``. With the same arguments, defaults included, a rule that
``torch.optim`` has gives PyTorch's numbers.

Every rule raises ValueError, naming the argument, where a parameter is not a shared variable or appears twice, a
gradient is missing or misshapen, the loss does not depend on a parameter, or a number is outside its range.

Rules compose: gradients may be changed first (``clip_by_global_norm``, ``apply_weight_decay``), updates afterwards
(``apply_momentum``, ``apply_nesterov``), and ``ema`` follows what they do. ``variable.tag.decay = False`` exempts a
parameter from weight decay everywhere; a ``ParameterStore`` sets it for norms and biases.
"""

from theano_mgpu.updates.composition import (
    ShadowUpdates,
    apply_momentum,
    apply_nesterov,
    apply_weight_decay,
    clip_by_global_norm,
    ema,
)
from theano_mgpu.updates.rules import (
    adadelta,
    adagrad,
    adam,
    adamw,
    lamb,
    lars,
    momentum,
    nesterov,
    rmsprop,
    sgd,
)

__all__ = [
    "ShadowUpdates",
    "adadelta",
    "adagrad",
    "adam",
    "adamw",
    "apply_momentum",
    "apply_nesterov",
    "apply_weight_decay",
    "clip_by_global_norm",
    "ema",
    "lamb",
    "lars",
    "momentum",
    "nesterov",
    "rmsprop",
    "sgd",
]
