"""Recipes against the published descriptions, written out here: learning rates, steps, what decays, augmentation."""

from __future__ import annotations

import math

import pytest

from theano_mgpu.recipes import find_recipe, schedule_of

IMAGENET = 1_281_167  # training images


def rates(name, **settings):
    """The rate at the first step of each epoch, and the steps of an epoch, the last smaller batch left out."""
    recipe = find_recipe(name).set(**settings)
    steps = IMAGENET // recipe.batch_size
    schedule = schedule_of(recipe, steps)
    return [schedule(epoch * steps) for epoch in range(int(recipe.epochs))], steps, schedule


def goyal(epoch: float, batch_size: int) -> float:
    """Goyal et al., section 5.1, and 2.2 for the warm-up: from 0.1 to 0.1 * batch / 256 over five epochs."""
    scaled = 0.1 * batch_size / 256
    if epoch < 5:
        return 0.1 + (scaled - 0.1) * epoch / 5
    return scaled * 0.1 ** sum(epoch >= boundary for boundary in (30, 60, 80))


@pytest.mark.parametrize(("batch_size", "steps"), [(256, 5004), (8192, 156)])
def test_goyals_learning_rate_at_every_epoch(batch_size, steps):
    found, per_epoch, _ = rates("imagenet-resnet50", batch_size=batch_size)
    assert per_epoch == steps
    assert found == pytest.approx([goyal(epoch, batch_size) for epoch in range(90)])


def torchvision(epoch: int) -> float:
    """LinearLR(start_factor=0.01, total_iters=5), then CosineAnnealingLR(T_max=595), stepped once an epoch."""
    if epoch < 5:
        return 0.5 * (0.01 + 0.99 * epoch / 5)
    return 0.5 * (1 + math.cos(math.pi * (epoch - 5) / 595)) / 2


def test_torchvisions_learning_rate_at_every_epoch():
    found, per_epoch, schedule = rates("imagenet-resnet50-600")
    assert per_epoch == 1251
    assert found == pytest.approx([torchvision(epoch) for epoch in range(600)])
    assert schedule(1250) == found[0], "held within an epoch"


def test_torchvisions_average_forgets_as_fast():
    """utils: alpha = (1 - 0.99998) * (world size * batch * 32 steps / epochs), applied every 32nd step."""
    adjusted = 1 - (1 - 0.99998) * 8 * 128 * 32 / 600
    assert find_recipe("imagenet-resnet50-600").ema == pytest.approx(adjusted ** (1 / 32), abs=1e-7)


def ffcv(epoch: float) -> float:
    """numpy.interp over (0, 2, 16) epochs of (1e-4 lr, lr, 0), and linear within an epoch."""
    return 0.5 * (1e-4 + (1 - 1e-4) * epoch / 2 if epoch < 2 else (16 - epoch) / 14)


def test_ffcvs_learning_rate_at_every_epoch():
    found, per_epoch, schedule = rates("imagenet-resnet18-16epochs")
    assert per_epoch == 1251
    assert found == pytest.approx([ffcv(epoch) for epoch in range(16)], rel=1e-6)
    assert schedule(1251 + 625) == pytest.approx(ffcv(1 + 625 / 1251))


def test_cifars_learning_rate_falls_at_32000_and_48000_steps_of_64000():
    recipe = find_recipe("cifar10-resnet20")
    steps = 50_000 // recipe.batch_size
    schedule = schedule_of(recipe, steps)
    assert [schedule(step) for step in (0, 31_900, 32_000, 47_900, 48_000)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 1e-3]
    )
    assert recipe.epochs * steps == pytest.approx(64_000, rel=2e-3)
