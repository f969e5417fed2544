"""The rules themselves: from gradients to new values. Arguments, results and errors: see ``theano_mgpu.updates``."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
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
from theano_mgpu.updates.composition import with_momentum, with_nesterov

__all__ = ["adadelta", "adagrad", "adam", "adamw", "lamb", "lars", "momentum", "nesterov", "rmsprop", "sgd"]

Params = Iterable[SharedVariable]


def sgd(loss_or_grads: Any, params: Params, learning_rate: Number) -> Updates:
    """Stochastic gradient descent.

    param := param - learning_rate * gradient
    """
    check_non_negative("sgd", learning_rate=learning_rate)
    params = check_params("sgd", params)
    gradients = check_gradients("sgd", loss_or_grads, params)
    return {
        param: param - cast(learning_rate, param) * gradient for param, gradient in zip(params, gradients, strict=True)
    }


def momentum(loss_or_grads: Any, params: Params, learning_rate: Number, momentum: Number = 0.9) -> Updates:
    """Stochastic gradient descent with momentum: ``sgd`` and ``apply_momentum``.

    velocity := momentum * velocity + gradient
    param    := param - learning_rate * velocity

    PyTorch's form: the velocity holds gradients alone, so a new learning rate acts on all of it at once.

    Sutskever et al., "On the importance of initialization and momentum in deep learning", ICML 2013, eq. 1-2, where the
    velocity contains the learning rate.
    """
    check_non_negative("momentum", learning_rate=learning_rate)
    check_fractions("momentum", momentum=momentum)
    params = check_params("momentum", params)
    gradients = check_gradients("momentum", loss_or_grads, params)
    return with_momentum(dict(zip(params, gradients, strict=True)), momentum, learning_rate)


def nesterov(loss_or_grads: Any, params: Params, learning_rate: Number, momentum: Number = 0.9) -> Updates:
    """Stochastic gradient descent with Nesterov momentum: ``sgd`` and ``apply_nesterov``.

    velocity := momentum * velocity + gradient
    param    := param - learning_rate * (momentum * velocity + gradient)

    with the new velocity in the second line: PyTorch's form, and Lasagne's while the learning rate is constant.

    Sutskever et al., ICML 2013, eq. 3-4, rewritten so that ``param`` is the point at which gradients are taken.
    """
    check_non_negative("nesterov", learning_rate=learning_rate)
    check_fractions("nesterov", momentum=momentum)
    params = check_params("nesterov", params)
    gradients = check_gradients("nesterov", loss_or_grads, params)
    return with_nesterov(dict(zip(params, gradients, strict=True)), momentum, learning_rate)


def adagrad(loss_or_grads: Any, params: Params, learning_rate: Number = 0.01, epsilon: Number = 1e-10) -> Updates:
    """Adagrad: each coordinate's learning rate shrinks with the gradients it has seen.

    sum_square := sum_square + gradient^2
    param      := param - learning_rate * gradient / (sqrt(sum_square) + epsilon)

    Duchi et al., "Adaptive subgradient methods for online learning and stochastic optimization", JMLR 12 (2011).
    """
    check_non_negative("adagrad", learning_rate=learning_rate, epsilon=epsilon)
    params = check_params("adagrad", params)
    updates: Updates = {}
    for param, gradient in zip(params, check_gradients("adagrad", loss_or_grads, params), strict=True):
        sum_square = state(param, "sum_square")
        new_sum = sum_square + pt.sqr(gradient)
        updates[sum_square] = new_sum
        updates[param] = param - cast(learning_rate, param) * gradient / (pt.sqrt(new_sum) + cast(epsilon, param))
    return updates


def rmsprop(
    loss_or_grads: Any, params: Params, learning_rate: Number = 0.01, rho: Number = 0.99, epsilon: Number = 1e-8
) -> Updates:
    """RMSprop: gradients over their running root mean square.

    mean_square := rho * mean_square + (1 - rho) * gradient^2
    param       := param - learning_rate * gradient / (sqrt(mean_square) + epsilon)

    ``rho`` is PyTorch's ``alpha``. Lasagne has ``epsilon`` under the root.

    Tieleman and Hinton, "Lecture 6.5: rmsprop", Coursera: Neural networks for machine learning, 2012.
    """
    check_non_negative("rmsprop", learning_rate=learning_rate, epsilon=epsilon)
    check_fractions("rmsprop", rho=rho)
    params = check_params("rmsprop", params)
    updates: Updates = {}
    for param, gradient in zip(params, check_gradients("rmsprop", loss_or_grads, params), strict=True):
        mean_square = state(param, "mean_square")
        new_mean = cast(rho, param) * mean_square + one_minus(rho, param) * pt.sqr(gradient)
        updates[mean_square] = new_mean
        updates[param] = param - cast(learning_rate, param) * gradient / (pt.sqrt(new_mean) + cast(epsilon, param))
    return updates


def adadelta(
    loss_or_grads: Any, params: Params, learning_rate: Number = 1.0, rho: Number = 0.9, epsilon: Number = 1e-6
) -> Updates:
    """Adadelta: steps as large as the steps before, relative to the gradients.

    mean_square      := rho * mean_square + (1 - rho) * gradient^2
    step              = gradient * sqrt(mean_square_step + epsilon) / sqrt(mean_square + epsilon)
    mean_square_step := rho * mean_square_step + (1 - rho) * step^2
    param            := param - learning_rate * step

    Zeiler, "ADADELTA: an adaptive learning rate method", arXiv 1212.5701, algorithm 1.
    """
    check_non_negative("adadelta", learning_rate=learning_rate, epsilon=epsilon)
    check_fractions("adadelta", rho=rho)
    params = check_params("adadelta", params)
    updates: Updates = {}
    for param, gradient in zip(params, check_gradients("adadelta", loss_or_grads, params), strict=True):
        keep, add, small = cast(rho, param), one_minus(rho, param), cast(epsilon, param)
        mean_square, mean_square_step = state(param, "mean_square"), state(param, "mean_square_step")
        new_mean = keep * mean_square + add * pt.sqr(gradient)
        step = gradient * pt.sqrt(mean_square_step + small) / pt.sqrt(new_mean + small)
        updates[mean_square] = new_mean
        updates[mean_square_step] = keep * mean_square_step + add * pt.sqr(step)
        updates[param] = param - cast(learning_rate, param) * step
    return updates


def adam(
    loss_or_grads: Any,
    params: Params,
    learning_rate: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    epsilon: Number = 1e-8,
) -> Updates:
    """Adam: momentum over the root mean square, both corrected for their start at zero.

    steps         := steps + 1
    first_moment  := beta1 * first_moment + (1 - beta1) * gradient
    second_moment := beta2 * second_moment + (1 - beta2) * gradient^2
    direction      = first_moment / (1 - beta1^steps) / (sqrt(second_moment / (1 - beta2^steps)) + epsilon)
    param         := param - learning_rate * direction

    ``steps`` is one int64 scalar for all parameters.

    Kingma and Ba, "Adam: a method for stochastic optimization", ICLR 2015, algorithm 1.
    """
    check_non_negative("adam", learning_rate=learning_rate, epsilon=epsilon)
    check_fractions("adam", beta1=beta1, beta2=beta2)
    params = check_params("adam", params)
    gradients = check_gradients("adam", loss_or_grads, params)
    directions, updates = _adam_directions(gradients, params, beta1, beta2, epsilon)
    for param, direction in zip(params, directions, strict=True):
        updates[param] = param - cast(learning_rate, param) * direction
    return updates


def adamw(
    loss_or_grads: Any,
    params: Params,
    learning_rate: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    epsilon: Number = 1e-8,
    weight_decay: Number = 0.01,
) -> Updates:
    """Adam with decoupled weight decay.

    param := param - learning_rate * weight_decay * param - learning_rate * direction

    with Adam's direction. Parameters with ``param.tag.decay`` False do not decay.

    Loshchilov and Hutter, "Decoupled weight decay regularization", ICLR 2019, algorithm 2, in PyTorch's form: the
    learning rate scales the decay.
    """
    check_non_negative("adamw", learning_rate=learning_rate, epsilon=epsilon, weight_decay=weight_decay)
    check_fractions("adamw", beta1=beta1, beta2=beta2)
    params = check_params("adamw", params)
    gradients = check_gradients("adamw", loss_or_grads, params)
    directions, updates = _adam_directions(gradients, params, beta1, beta2, epsilon)
    for param, direction in zip(params, directions, strict=True):
        rate = cast(learning_rate, param)
        if decays(param):
            direction = direction + cast(weight_decay, param) * param
        updates[param] = param - rate * direction
    return updates


def lars(
    loss_or_grads: Any,
    params: Params,
    learning_rate: Number,
    momentum: Number = 0.9,
    weight_decay: Number = 1e-4,
    trust: Number = 0.001,
) -> Updates:
    """LARS, for large batches: momentum, each layer's gradient scaled to the layer's own size.

    local    = trust * |param| / (|gradient| + weight_decay * |param|)
    velocity := momentum * velocity + local * (gradient + weight_decay * param)
    param    := param - learning_rate * velocity

    ``local`` is 1 where the parameter or its gradient is zero. Parameters with ``param.tag.decay`` False (norms and
    biases) take plain momentum steps, as is usual. The velocity holds no learning rate, as in ``momentum``; the paper's
    algorithm 1 has it inside, which is the same while it is constant.

    You et al., "Large batch training of convolutional networks", arXiv 1708.03888, eq. 6.
    """
    check_non_negative("lars", learning_rate=learning_rate, weight_decay=weight_decay, trust=trust)
    check_fractions("lars", momentum=momentum)
    params = check_params("lars", params)
    scaled = []
    for param, gradient in zip(params, check_gradients("lars", loss_or_grads, params), strict=True):
        if decays(param):
            size, slope = _norm(param), _norm(gradient)
            decayed = slope + cast(weight_decay, size) * size
            local = _ratio_or_one(cast(trust, size) * size, decayed, pt.minimum(size, slope))
            gradient = local * (gradient + cast(weight_decay, param) * param)
        scaled.append(gradient)
    return with_momentum(dict(zip(params, scaled, strict=True)), momentum, learning_rate)


def lamb(
    loss_or_grads: Any,
    params: Params,
    learning_rate: Number = 0.001,
    beta1: Number = 0.9,
    beta2: Number = 0.999,
    epsilon: Number = 1e-6,
    weight_decay: Number = 0.01,
) -> Updates:
    """LAMB, for large batches: Adam's direction, scaled to each layer's own size.

    direction = Adam's direction + weight_decay * param
    param    := param - learning_rate * |param| / |direction| * direction

    The ratio is 1 where either norm is zero. Parameters with ``param.tag.decay`` False (norms and biases) take
    Adam's steps, as in the authors' code.

    You et al., "Large batch optimization for deep learning: training BERT in 76 minutes", ICLR 2020, algorithm 2, with
    the identity for phi.
    """
    check_non_negative("lamb", learning_rate=learning_rate, epsilon=epsilon, weight_decay=weight_decay)
    check_fractions("lamb", beta1=beta1, beta2=beta2)
    params = check_params("lamb", params)
    gradients = check_gradients("lamb", loss_or_grads, params)
    directions, updates = _adam_directions(gradients, params, beta1, beta2, epsilon)
    for param, direction in zip(params, directions, strict=True):
        if decays(param):
            direction = direction + cast(weight_decay, param) * param
            size, length = _norm(param), _norm(direction)
            direction = _ratio_or_one(size, length, pt.minimum(size, length)) * direction
        updates[param] = param - cast(learning_rate, param) * direction
    return updates


def _adam_directions(
    gradients: Sequence[TensorVariable],
    params: Sequence[SharedVariable],
    beta1: Number,
    beta2: Number,
    epsilon: Number,
) -> tuple[list[TensorVariable], Updates]:
    """Adam's direction for each parameter, and the updates of the state behind it."""
    if not params:
        return [], {}
    steps = pytensor.shared(np.asarray(0, dtype="int64"), name=f"{params[0].name or 'param'}.steps")
    directions, updates = [], {steps: steps + 1}
    for param, gradient in zip(params, gradients, strict=True):
        first, second = state(param, "first_moment"), state(param, "second_moment")
        new_first = cast(beta1, param) * first + one_minus(beta1, param) * gradient
        new_second = cast(beta2, param) * second + one_minus(beta2, param) * pt.sqr(gradient)
        count = (steps + 1).astype(param.type.dtype)
        mean = new_first / _one_minus_power(beta1, count)
        mean_square = new_second / _one_minus_power(beta2, count)
        directions.append(mean / (pt.sqrt(mean_square) + cast(epsilon, param)))
        updates |= {first: new_first, second: new_second}
    return directions, updates


def _one_minus_power(beta: Number, count: TensorVariable) -> TensorVariable:
    """``1 - beta^count``, to the last digit also in float32, where 1 - 0.999 alone would be off by 5e-5."""
    if not isinstance(beta, Variable) and beta == 0:
        return cast(1, count)
    log_beta = pt.log(cast(beta, count)) if isinstance(beta, Variable) else cast(math.log(beta), count)
    return -pt.expm1(count * log_beta)


def _norm(x: TensorVariable) -> TensorVariable:
    return pt.sqrt(pt.sum(pt.sqr(x)))


def _ratio_or_one(numerator: TensorVariable, denominator: TensorVariable, defined: TensorVariable) -> TensorVariable:
    """``numerator / denominator`` where ``defined`` is positive, else 1."""
    one = cast(1, numerator)
    positive = pt.gt(defined, 0)
    return pt.switch(positive, numerator / pt.switch(positive, denominator, one), one)
