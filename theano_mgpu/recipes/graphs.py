"""A recipe's graphs: network, loss and update rule, and the steps that they are compiled to."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.tensor.variable import TensorVariable

from theano_mgpu import layers, models, nn, updates
from theano_mgpu.averages import average, grad
from theano_mgpu.devices import Contexts
from theano_mgpu.frontend import function
from theano_mgpu.recipes.settings import Recipe
from theano_mgpu.step import Step
from theano_mgpu.store import ParameterStore
from theano_mgpu.updates.arguments import Updates

__all__ = ["TrainingSteps", "loss_and_top1", "prediction_step", "training_steps", "update_rule"]


@dataclass(frozen=True)
class TrainingSteps:
    """``train`` takes images, labels and the learning rate; ``predict`` gives logits. ``predict_averaged``, too, of the
    averaged parameters, where the recipe has some."""

    store: ParameterStore
    train: Step
    predict: Step
    predict_averaged: Step | None


def training_steps(recipe: Recipe, num_classes: int, steps_per_epoch: int, contexts: Contexts) -> TrainingSteps:
    """The network with its first parameters, and its steps; nothing is compiled before the first call.

    Raises ValueError for settings that do not fit each other.
    """
    store = ParameterStore(seed=recipe.seed)
    first, last = recipe.image_sizes
    images = _images(first if first == last else None)
    labels = pt.vector("labels", dtype="int32")
    rate = pt.scalar("learning_rate", dtype="float32")
    loss, top1 = loss_and_top1(recipe, store, images, labels, num_classes)

    params = store.trainable()
    rule = update_rule(recipe, grad(loss, params), params, rate) | store.updates()
    averaged = None if recipe.ema is None else _averaged(recipe, store, rule, steps_per_epoch)
    train = _compiled(
        recipe,
        contexts,
        [images, labels, rate],
        {"loss": average(loss), "top1": average(top1)},
        updates=rule | (averaged or {}),
        update_on=recipe.update_on,
        split_over="ranks",
        nonfinite=recipe.nonfinite,
        name="train",
    )
    predict = prediction_step(recipe, store, num_classes, contexts, split_over="ranks")
    predict_averaged = None
    if averaged is not None:
        predict_averaged = prediction_step(recipe, store, num_classes, contexts, averaged.shadows, split_over="ranks")
    return TrainingSteps(store, train, predict, predict_averaged)


def prediction_step(
    recipe: Recipe,
    store: ParameterStore,
    num_classes: int,
    contexts: Contexts,
    shadows: dict[SharedVariable, SharedVariable] | None = None,
    *,
    split_over: str = "devices",
) -> Step:
    """uint8 images (n, size, size, 3) to logits (n, num_classes), on the store's parameters or their ``shadows``.

    ``split_over="ranks"``: under mpirun each rank has its part of the images, and of the logits.
    """
    images = _images(recipe.evaluation_size)
    logits = _network(recipe, store, images, num_classes, train=False)
    if recipe.evaluate_flipped:
        logits = (logits + _network(recipe, store, images[:, :, ::-1], num_classes, train=False)) / np.float32(2)
    return _compiled(recipe, contexts, [images], logits, givens=shadows, split_over=split_over, name="predict")


def loss_and_top1(
    recipe: Recipe, store: ParameterStore, images: TensorVariable, labels: TensorVariable, num_classes: int
) -> tuple[TensorVariable, TensorVariable]:
    """Training's, means over the examples; of mixed images, top-1 asks for the first of the two labels."""
    mixed = _mixed(recipe, store, images, labels)
    logits = _network(recipe, store, mixed.images if mixed else images, num_classes, train=True)
    smoothing = recipe.label_smoothing
    if recipe.loss == "binary_cross_entropy":
        targets = mixed.targets(num_classes, smoothing) if mixed else nn.one_hot(labels, num_classes, smoothing)
        losses = nn.binary_cross_entropy(logits, targets)
    elif mixed:
        losses = nn.mixed_cross_entropy(logits, mixed, smoothing)
    else:
        losses = nn.softmax_cross_entropy(logits, labels, smoothing)
    return losses.mean(), nn.top_k_accuracy(logits, labels, 1).mean()


def update_rule(
    recipe: Recipe, gradients: list[TensorVariable], params: Sequence[SharedVariable], rate: TensorVariable
) -> Updates:
    """Parameters to their new values: gradients are scaled down together, then decayed, then the optimizer's."""
    if recipe.clip_norm is not None:
        gradients = updates.clip_by_global_norm(gradients, recipe.clip_norm)
    options: dict[str, Any] = {}
    if recipe.optimizer in ("momentum", "nesterov", "lars"):
        options["momentum"] = recipe.momentum
    if recipe.optimizer in ("adamw", "lars", "lamb"):
        options["weight_decay"] = recipe.weight_decay
    with _decaying(recipe, params):
        if recipe.weight_decay and "weight_decay" not in options:
            gradients = updates.apply_weight_decay(gradients, params, recipe.weight_decay)
        return getattr(updates, recipe.optimizer)(gradients, params, learning_rate=rate, **options)


def _images(size: int | None) -> TensorVariable:
    return pt.tensor("images", shape=(None, size, size, 3), dtype="uint8")


def _network(
    recipe: Recipe, store: ParameterStore, images: TensorVariable, num_classes: int, *, train: bool
) -> TensorVariable:
    return models.resnet(
        store,
        images,
        depth=recipe.depth,
        num_classes=num_classes,
        train=train,
        sync=recipe.sync_batch_norm,
        zero_init_residual=recipe.zero_init_residual,
        recompute=recipe.recompute and train,
        blur_pool=recipe.blur_pool,
    )


def _mixed(recipe: Recipe, store: ParameterStore, images: TensorVariable, labels: TensorVariable) -> nn.Mixed | None:
    if not recipe.mixup and not recipe.cutmix:
        return None
    images = nn.normalise_images(images)
    if recipe.mixup and recipe.cutmix:
        return layers.mixup_or_cutmix(store, "mixing", images, labels, recipe.mixup, recipe.cutmix)
    mix, alpha = (layers.mixup, recipe.mixup) if recipe.mixup else (layers.cutmix, recipe.cutmix)
    return mix(store, "mixing", images, labels, alpha)


@contextmanager
def _decaying(recipe: Recipe, params: Sequence[SharedVariable]) -> Iterator[None]:
    """Inside, update rules decay what the recipe says; the store exempts norms and biases, which are its vectors."""
    vectors = [param for param in params if param.type.ndim == 1]
    before = [param.tag.decay for param in vectors]
    for param in vectors:
        is_bias = param.name == "fc.bias"  # the others are batch norm's scales and shifts
        param.tag.decay = recipe.weight_decay_on == "everything" or (
            recipe.weight_decay_on == "weights and biases" and is_bias
        )
    try:
        yield
    finally:
        for param, decay in zip(vectors, before, strict=True):
            param.tag.decay = decay


def _averaged(recipe: Recipe, store: ParameterStore, rule: Updates, steps_per_epoch: int) -> updates.ShadowUpdates:
    """Averages of all that evaluation reads, batch norm's statistics among it; copies until ``ema_start_epoch``."""
    start = round(recipe.ema_start_epoch * steps_per_epoch)
    steps = pytensor.shared(np.int64(0), name="ema.steps")
    decay = pt.switch(pt.lt(steps, start), np.float32(0), np.float32(recipe.ema))
    averaged = updates.ema(rule, [store[name] for name in store], decay)
    averaged[steps] = steps + 1
    return averaged


def _compiled(recipe: Recipe, contexts: Contexts, inputs: list[TensorVariable], outputs: Any, **options: Any) -> Step:
    return function(inputs, outputs, contexts=contexts, shards=recipe.shards, precision=recipe.precision, **options)
