"""Layers: the functions of ``nn`` with parameters made in a store.

A layer's parameters have PyTorch's names, ``{name}.weight``, ``{name}.bias``, ``{name}.running_mean`` and
``{name}.running_var``; asked for again, in an evaluation graph say, they are the same variables. Channels are the last
axis, and their number must be static: ``pt.tensor(..., shape=(None, 224, 224, 3))``.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

from theano_mgpu import nn
from theano_mgpu.averages import average, total
from theano_mgpu.init import glorot_uniform, he_normal
from theano_mgpu.nn.windows import pair
from theano_mgpu.store import Initialiser, ParameterStore

__all__ = ["batch_norm", "conv2d", "cutmix", "dense", "dropout", "mixup", "mixup_or_cutmix"]


def conv2d(
    store: ParameterStore,
    name: str,
    x: Any,
    filters: int,
    size: int | tuple[int, int],
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
    bias: bool = True,
    init: Initialiser | None = None,
) -> TensorVariable:
    """Two-dimensional convolution, channels last: ``nn.conv2d(x, weight, ...) + bias``.

    Parameters:
        x: images (examples, height, width, channels), float32.
        filters: the number of output channels.
        size: of a filter, an int or (vertical, horizontal).
        stride, padding, dilation, groups: as in ``nn.conv2d``.
        bias: whether to add one; switch it off in front of batch normalisation. It is not decayed and begins at 0.
        init: of the weight (height, width, channels / groups, filters); ``init.he_normal()`` where it is not given.

    Returns images (examples, output height, output width, filters).
    Raises ValueError, naming the layer, for channels that are unknown or do not divide into the groups.
    """
    x = pt.as_tensor_variable(x)
    layer = f"conv2d('{name}')"
    channels = _channels(layer, x, ndim=4)
    filters, groups = _count(layer, "filters", filters), _count(layer, "groups", groups)
    if channels % groups or filters % groups:
        raise ValueError(f"{layer}: {channels} channels and {filters} filters should both divide into {groups} groups.")
    height, width = pair("conv2d", "size", size)
    weight = store.param(
        f"{name}.weight",
        (height, width, channels // groups, filters),
        he_normal() if init is None else init,
        torch_axes=(3, 2, 0, 1),
    )
    y = nn.conv2d(x, weight, stride=stride, padding=padding, dilation=dilation, groups=groups)
    return y + store.param(f"{name}.bias", (filters,), 0.0, decay=False) if bias else y


def batch_norm(
    store: ParameterStore,
    name: str,
    x: Any,
    train: bool,
    sync: bool = False,
    momentum: float = 0.1,
    eps: float = 1e-5,
    init: Initialiser | float = 1.0,
) -> TensorVariable:
    """Batch normalisation over all axes but the last, with PyTorch's conventions.

    training:    y := (x - mean) / sqrt(var + eps) * weight + bias, with the batch's mean and variance, and
                 running_mean := (1 - momentum) * running_mean + momentum * average(mean)
                 running_var := (1 - momentum) * running_var + momentum * average(var * n / (n - 1))
    evaluation:  y := (x - running_mean) / sqrt(running_var + eps) * weight + bias

    n is the number of entries per channel that the statistics were taken of: var is what normalises, the running one is
    the unbiased estimate, as in PyTorch (with n = 1 it is var itself, 0). The two assignments are registered with the
    store: add ``store.updates()`` to the training step's.

    Parameters:
        x: (..., channels) with at least two axes, float32.
        train: which of the two graphs to build.
        sync: take the statistics over the whole batch, not over each shard by itself.
        momentum: the new batch's part in the running statistics.
        eps: added to the variance.
        init: of the weight; the bias begins at 0, and neither is decayed.

    running_mean begins at 0 and running_var at 1; neither is trained.
    Raises TypeError if ``train`` is not a bool, ValueError for unknown channels or a momentum outside of 0 to 1.

    Ioffe and Szegedy, "Batch normalization", ICML 2015, algorithms 1 and 2.
    """
    x = pt.as_tensor_variable(x)
    layer = f"batch_norm('{name}')"
    _check_train(layer, train)
    if not 0 <= momentum <= 1:
        raise ValueError(f"{layer}: 'momentum' should be from 0 to 1, not {momentum!r}.")
    channels = _channels(layer, x)
    weight = store.param(f"{name}.weight", (channels,), init, decay=False)
    bias = store.param(f"{name}.bias", (channels,), 0.0, decay=False)
    running_mean = store.param(f"{name}.running_mean", (channels,), 0.0, trainable=False, decay=False)
    running_var = store.param(f"{name}.running_var", (channels,), 1.0, trainable=False, decay=False)
    if not train:
        scale = weight / pt.sqrt(running_var + np.float32(eps))
        return x * scale + (bias - running_mean * scale)

    y, mean, var = nn.batch_norm(x, weight, bias, eps=eps, sync=sync)
    entries = (x.size // channels).astype("float32")
    unbiased = average(var) * _unbiasing(total(entries)) if sync else average(var * _unbiasing(entries))
    old, new = np.float32(1 - momentum), np.float32(momentum)
    store.register_update(running_mean, old * running_mean + new * average(mean))
    store.register_update(running_var, old * running_var + new * unbiased)
    return y


def dense(
    store: ParameterStore, name: str, x: Any, units: int, init: Initialiser | None = None, bias: bool = True
) -> TensorVariable:
    """A fully connected layer over the last axis: ``x @ weight + bias``.

    Parameters:
        x: (..., channels) with at least two axes, float32.
        units: the number of outputs.
        init: of the weight (channels, units); ``init.glorot_uniform()`` where it is not given.
        bias: whether to add one; it is not decayed and begins at 0.

    Returns (..., units). Raises ValueError, naming the layer, for unknown channels.
    """
    x = pt.as_tensor_variable(x)
    layer = f"dense('{name}')"
    channels, units = _channels(layer, x), _count(layer, "units", units)
    weight = store.param(
        f"{name}.weight", (channels, units), glorot_uniform() if init is None else init, torch_axes=(1, 0)
    )
    y = pt.dot(x, weight)
    return y + store.param(f"{name}.bias", (units,), 0.0, decay=False) if bias else y


def dropout(store: ParameterStore, name: str, x: Any, rate: float, train: bool) -> TensorVariable:
    """In training ``nn.dropout`` with the store's generator ``name``, in evaluation ``x`` itself.

    The generator's next state is registered with the store: add ``store.updates()`` to the training step's. It is made
    in evaluation too, so that both graphs' stores save to the same file. Every dropout needs a name of its own.
    Raises TypeError if ``train`` is not a bool, ValueError for a rate below 0 or from 1 on.
    """
    x = pt.as_tensor_variable(x)
    layer = f"dropout('{name}')"
    _check_train(layer, train)
    if not 0 <= rate < 1:
        raise ValueError(f"{layer}: 'rate' should be at least 0 and less than 1, not {rate!r}.")
    rng = store.rng(name)
    if not train:
        return x
    next_rng, y = nn.dropout(x, rate, rng)
    store.register_update(rng, next_rng)
    return y


def mixup(store: ParameterStore, name: str, images: Any, labels: Any, alpha: float) -> nn.Mixed:
    """``nn.mixup`` with the store's generator ``name``, of which the next state is registered.

    For the training graph: add ``store.updates()`` to the step's. A store that only evaluates asks for
    ``store.rng(name)``, or loads with ``skip=(name,)``.
    """
    rng = store.rng(name)
    return _registered(store, rng, *nn.mixup(images, labels, alpha, rng))


def cutmix(store: ParameterStore, name: str, images: Any, labels: Any, alpha: float) -> nn.Mixed:
    """``nn.cutmix`` with the store's generator ``name``, as ``mixup``."""
    rng = store.rng(name)
    return _registered(store, rng, *nn.cutmix(images, labels, alpha, rng))


def mixup_or_cutmix(
    store: ParameterStore,
    name: str,
    images: Any,
    labels: Any,
    mixup_alpha: float,
    cutmix_alpha: float,
    cutmix_probability: float = 0.5,
) -> nn.Mixed:
    """``nn.mixup_or_cutmix`` with the store's generator ``name``, as ``mixup``."""
    rng = store.rng(name)
    return _registered(
        store, rng, *nn.mixup_or_cutmix(images, labels, mixup_alpha, cutmix_alpha, rng, cutmix_probability)
    )


def _registered(store: ParameterStore, rng: Any, next_rng: Any, mixed: nn.Mixed) -> nn.Mixed:
    store.register_update(rng, next_rng)
    return mixed


def _unbiasing(entries: TensorVariable) -> TensorVariable:
    return entries / pt.maximum(entries - np.float32(1), np.float32(1))


def _channels(layer: str, x: TensorVariable, ndim: int | None = None) -> int:
    if x.type.ndim != ndim if ndim is not None else x.type.ndim < 2:
        expected = f"{ndim} axes" if ndim is not None else "at least 2 axes"
        raise ValueError(f"{layer}: x should have {expected}, the channels last; it has shape {x.type.shape}.")
    channels = x.type.shape[-1]
    if channels is None:
        raise ValueError(
            f"{layer}: x has shape {x.type.shape}, so the number of its channels is unknown, and with it the shape of "
            "the layer's parameters. Give the input its shape, as in pt.tensor(..., shape=(None, 224, 224, 3)), or use "
            "pt.specify_shape(x, (None, ..., channels)). x.flatten(2) forgets it; x.reshape((-1, channels)) does not."
        )
    return channels


def _count(layer: str, argument: str, value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < 1:
        raise ValueError(f"{layer}: '{argument}' should be a positive integer, not {value!r}.")
    return int(value)


def _check_train(layer: str, train: Any) -> None:
    if not isinstance(train, bool):
        raise TypeError(
            f"{layer}: 'train' should be True or False, not {train!r}: training and evaluation are two graphs on one "
            "store."
        )
