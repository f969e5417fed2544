"""The loss that a recipe trains on, and what it predicts by, against numpy."""

from __future__ import annotations

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode

from theano_mgpu.recipes import Recipe
from theano_mgpu.recipes.graphs import loss_and_top1, prediction_step, training_steps
from theano_mgpu.store import ParameterStore

PYTHON = Mode("py", None)
CLASSES = 5
LOGITS = np.array([2.0, -1.0, 0.5, 0.0, 3.0], np.float32)


def loss_of(labels, **settings):
    """Of a network whose last layer answers LOGITS to any image."""
    store = ParameterStore()
    images = pt.tensor("images", shape=(None, 8, 8, 3), dtype="uint8")
    given = pt.vector("labels", dtype="int32")
    loss, top1 = loss_and_top1(Recipe(model="resnet20", image_size=8, **settings), store, images, given, CLASSES)
    store["fc.weight"].set_value(np.zeros_like(store["fc.weight"].get_value()))
    store["fc.bias"].set_value(LOGITS)
    pixels = np.random.default_rng(0).integers(0, 256, (len(labels), 8, 8, 3), np.uint8)
    return pytensor.function([images, given], [loss, top1], mode=PYTHON)(pixels, np.asarray(labels, np.int32))


def targets(labels, smoothing):
    return (1 - smoothing) * np.eye(CLASSES)[labels] + smoothing / CLASSES


def cross_entropy(target):
    logits = LOGITS.astype(float)
    return -(target * (logits - np.log(np.exp(logits).sum()))).sum(axis=1).mean()


def binary_cross_entropy(target):
    """A sigmoid for each class, averaged over the classes."""
    sigmoid = 1 / (1 + np.exp(-LOGITS.astype(float)))
    return -(target * np.log(sigmoid) + (1 - target) * np.log(1 - sigmoid)).mean()


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("formula", [cross_entropy, binary_cross_entropy])
def test_losses_are_their_formulas(formula, smoothing):
    labels = [4, 0, 4, 2]
    loss, top1 = loss_of(labels, loss=formula.__name__, label_smoothing=smoothing)
    assert loss == pytest.approx(formula(targets(labels, smoothing)), rel=1e-5)
    assert top1 == 0.5


@pytest.mark.parametrize("mixing", [{"mixup": 0.2}, {"cutmix": 1.0}, {"mixup": 0.2, "cutmix": 1.0}])
@pytest.mark.parametrize("formula", [cross_entropy, binary_cross_entropy])
def test_what_is_mixed_with_its_own_class_keeps_its_loss(formula, mixing):
    """Whatever the weight that is drawn."""
    labels = [3, 3, 3, 3]
    loss, _ = loss_of(labels, loss=formula.__name__, label_smoothing=0.1, **mixing)
    assert loss == pytest.approx(formula(targets(labels, 0.1)), rel=1e-5)


def test_the_loss_of_mixed_classes_lies_between_theirs():
    one, other = (cross_entropy(targets([label], 0)) for label in (4, 1))
    loss, _ = loss_of([4, 1], mixup=5.0)
    assert one < loss < other
    assert loss == pytest.approx((one + other) / 2, rel=1e-5), "of two, each is mixed with the other"


def test_evaluating_flipped_images_too_gives_the_mean_of_both_logits(eight):
    recipe = Recipe(model="resnet20", image_size=8, contexts="cpu:2")
    store = ParameterStore(seed=1)
    plain = prediction_step(recipe, store, CLASSES, eight[:2])
    both = prediction_step(recipe.set(evaluate_flipped=True), store, CLASSES, eight[:2])
    images = np.random.default_rng(0).integers(0, 256, (4, 8, 8, 3), np.uint8)
    one, other = plain(images), plain(np.ascontiguousarray(images[:, :, ::-1]))
    np.testing.assert_allclose(both(images), (one + other) / 2, rtol=1e-5, atol=1e-5)
    assert np.abs(one - other).max() > 0.01


@pytest.mark.parametrize("sync", [False, True])
def test_synchronised_batch_norm_asks_the_other_devices(sync, eight):
    recipe = Recipe(model="resnet20", image_size=8, shards=2, sync_batch_norm=sync)
    assert training_steps(recipe, CLASSES, 1, eight[:2]).train.needs_one_round is sync
