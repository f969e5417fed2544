"""What one step of a recipe does to parameters of given gradients, against the formulas in numpy."""

from __future__ import annotations

import math
from typing import get_args, get_type_hints

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from theano_mgpu.recipes import Recipe
from theano_mgpu.recipes.graphs import update_rule
from theano_mgpu.store import ParameterStore

RATE, DECAY = 0.5, 0.1
NAMES = ("layer1.0.conv1.weight", "layer1.0.bn1.weight", "layer1.0.bn1.bias", "fc.weight", "fc.bias")
SHAPES = ((3, 3, 2, 4), (4,), (4,), (4, 3), (3,))


def one_step(gradient, **settings):
    """The parameters before and after, by name; ``gradient(name, value)`` is what they get."""
    store, rng = ParameterStore(), np.random.default_rng(0)
    for name, shape in zip(NAMES, SHAPES, strict=True):
        value = rng.normal(size=shape).astype("float32")
        store.param(name, shape, lambda _rng, _shape, value=value: value, decay=len(shape) > 1)
    before = store.get_values()
    gradients = [pt.as_tensor_variable(gradient(name, before[name])) for name in NAMES]
    rate = pt.scalar("learning_rate", dtype="float32")
    params = [store[name] for name in NAMES]
    rule = update_rule(Recipe(**settings), gradients, params, rate)
    pytensor.function([rate], [], updates=rule, mode="FAST_COMPILE")(RATE)
    return before, store.get_values()


def nothing(name, value):
    return np.zeros_like(value)


def something(name, value):
    return (np.sin(np.arange(value.size)).reshape(value.shape) + len(name) / 10).astype("float32")


@pytest.mark.parametrize(
    ("on", "decayed"),
    [
        ("weights", {"layer1.0.conv1.weight", "fc.weight"}),
        ("weights and biases", {"layer1.0.conv1.weight", "fc.weight", "fc.bias"}),
        ("everything", set(NAMES)),
    ],
)
@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "nesterov", "adamw"])
def test_without_a_gradient_a_parameter_shrinks_by_rate_times_decay_or_not_at_all(on, decayed, optimizer):
    before, after = one_step(nothing, optimizer=optimizer, weight_decay=DECAY, weight_decay_on=on, momentum=0.5)
    # Nesterov's first step is (1 + momentum) times as far: the decay is a gradient like others.
    shrunk = 1 - np.float32(RATE * DECAY * (1.5 if optimizer == "nesterov" else 1))
    for name in NAMES:
        expected = before[name] * (shrunk if name in decayed else 1)
        np.testing.assert_allclose(after[name], expected, rtol=1e-6, err_msg=name)


def first_step(optimizer, g, p, decays):
    """The first step over the rate, downhill; momentum is 0.9, the other settings are as in PyTorch."""
    decay = DECAY if decays else 0.0
    plain, sign = g + decay * p, np.sign
    adam = g / (np.abs(g) + 1e-8)  # both moments are unbiased
    match optimizer:
        case "sgd" | "momentum":
            return plain
        case "nesterov":
            return 1.9 * plain
        case "adam":
            return sign(plain)
        case "adamw":
            return adam + decay * p
        case "adagrad":
            return sign(plain)
        case "rmsprop":
            return plain / (np.sqrt(0.01 * plain**2) + 1e-8)
        case "adadelta":
            return plain * np.sqrt(1e-6) / np.sqrt(0.1 * plain**2 + 1e-6)
        case "lamb":
            update = adam + decay * p
            return update * (np.linalg.norm(p) / np.linalg.norm(update) if decays else 1)
        case "lars":
            trust = 0.001 * np.linalg.norm(p) / (np.linalg.norm(g) + decay * np.linalg.norm(p)) if decays else 1
            return plain * trust
    raise AssertionError(optimizer)


OPTIMIZERS = get_args(get_type_hints(Recipe)["optimizer"])


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_every_optimizers_first_step_is_its_formula_with_the_recipes_settings(optimizer):
    before, after = one_step(something, optimizer=optimizer, weight_decay=DECAY, momentum=0.9)
    for name in NAMES:
        g = something(name, before[name]).astype("float64")
        way = first_step(optimizer, g, before[name].astype("float64"), before[name].ndim > 1)
        np.testing.assert_allclose(before[name] - after[name], RATE * way, rtol=3e-4, atol=1e-5, err_msg=name)


def test_gradients_are_scaled_down_together_before_they_decay():
    gradients = [something(name, np.zeros(shape)) for name, shape in zip(NAMES, SHAPES, strict=True)]
    norm = math.sqrt(sum(float((g.astype("float64") ** 2).sum()) for g in gradients))
    assert norm > 2
    before, after = one_step(something, optimizer="sgd", weight_decay=DECAY, clip_norm=1.5)
    for name, gradient in zip(NAMES, gradients, strict=True):
        decay = DECAY if before[name].ndim > 1 else 0
        expected = before[name] - RATE * (gradient * 1.5 / norm + decay * before[name])
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6, err_msg=name)
    unclipped = one_step(something, optimizer="sgd", clip_norm=norm * 1.01)[1]
    for name, gradient in zip(NAMES, gradients, strict=True):
        np.testing.assert_allclose(unclipped[name], before[name] - RATE * gradient, rtol=1e-5, atol=1e-6, err_msg=name)


def test_what_decays_is_as_before_for_whoever_asks_next():
    """The store's own marks are what other update rules go by."""
    store = ParameterStore()
    store.param("fc.weight", (2, 2), 1.0)
    store.param("fc.bias", (2,), 1.0, decay=False)
    params = [store["fc.weight"], store["fc.bias"]]
    recipe = Recipe(optimizer="sgd", weight_decay=DECAY, weight_decay_on="everything")
    update_rule(recipe, [pt.zeros_like(param) for param in params], params, pt.scalar(dtype="float32"))
    assert [param.tag.decay for param in params] == [True, False]
