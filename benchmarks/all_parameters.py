"""A step whose devices compute next to nothing, of all parameters of a ResNet: what is left is gather and update."""

from __future__ import annotations

from typing import Any

import pytensor.tensor as pt

import theano_mgpu as tm

__all__ = ["step_of_all_parameters"]


def step_of_all_parameters(contexts: tm.Contexts, depth: int, **options: Any) -> tuple[tm.Step, list[Any]]:
    """Takes a vector of scales; the loss is a scaled sum of all parameters, the rule momentum. The parameters too."""
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, 32, 32, 3), dtype="float32")
    tm.models.resnet(store, images, depth=depth, num_classes=1000, train=False)
    params = store.trainable()
    scale = pt.vector("scale", dtype="float32")
    loss = sum((param * scale.mean()).sum() for param in params)
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=1e-6, momentum=0.9)
    return tm.function([scale], tm.average(loss), updates=updates, contexts=contexts, **options), params
