"""Recipes against the published descriptions, written out here: learning rates, steps, what decays, augmentation."""

from __future__ import annotations

import numpy as np
import pytest
from published import ffcv, goyal, torchvision

from theano_mgpu.data.image_sizes import ImageSizes
from theano_mgpu.recipes import find_recipe, schedule_of

IMAGENET = 1_281_167  # training images


def rates(name, **settings):
    """The rate at the first step of each epoch, and the steps of an epoch, the last smaller batch left out."""
    recipe = find_recipe(name).set(**settings)
    steps = IMAGENET // recipe.batch_size
    schedule = schedule_of(recipe, steps)
    return [schedule(epoch * steps) for epoch in range(int(recipe.epochs))], steps, schedule


@pytest.mark.parametrize(("batch_size", "steps"), [(256, 5004), (8192, 156)])
def test_goyals_learning_rate_at_every_epoch(batch_size, steps):
    found, per_epoch, _ = rates("imagenet-resnet50", batch_size=batch_size)
    assert per_epoch == steps
    assert found == pytest.approx([goyal(epoch, 0.1 * batch_size / 256) for epoch in range(90)])


def test_torchvisions_learning_rate_at_every_epoch():
    found, per_epoch, schedule = rates("imagenet-resnet50-600")
    assert per_epoch == 1251
    assert found == pytest.approx([torchvision(epoch, 0.5) for epoch in range(600)])
    assert schedule(1250) == found[0], "held within an epoch"


def test_torchvisions_average_forgets_as_fast():
    """utils: alpha = (1 - 0.99998) * (world size * batch * 32 steps / epochs), applied every 32nd step."""
    adjusted = 1 - (1 - 0.99998) * 8 * 128 * 32 / 600
    assert find_recipe("imagenet-resnet50-600").ema == pytest.approx(adjusted ** (1 / 32), abs=1e-7)


def test_ffcvs_learning_rate_at_every_epoch():
    found, per_epoch, schedule = rates("imagenet-resnet18-16epochs")
    assert per_epoch == 1251
    assert found == pytest.approx([ffcv(epoch, 0.5) for epoch in range(16)], rel=1e-6)
    assert schedule(1251 + 625) == pytest.approx(ffcv(1 + 625 / 1251, 0.5))


def test_ffcvs_image_size_at_every_epoch():
    """get_resolution with rn18_16_epochs.yaml's min_res 160, max_res 192, start_ramp 11, end_ramp 13."""
    recipe = find_recipe("imagenet-resnet18-16epochs")
    sizes = ImageSizes.parse(recipe.image_size, int(recipe.epochs))

    def get_resolution(epoch):
        return int(np.round(np.interp([epoch], [11, 13], [160, 192])[0] / 32)) * 32

    found = [sizes.at(epoch) for epoch in range(16)]
    assert found == [get_resolution(epoch) for epoch in range(16)]
    assert found == [160] * 12 + [192] * 4
    assert (recipe.evaluation_size, recipe.evaluation_resize) == (256, round(256 / (224 / 256)))


def test_cifars_learning_rate_falls_at_32000_and_48000_steps_of_64000():
    recipe = find_recipe("cifar10-resnet20")
    steps = 50_000 // recipe.batch_size
    schedule = schedule_of(recipe, steps)
    assert [schedule(step) for step in (0, 31_900, 32_000, 47_900, 48_000)] == pytest.approx(
        [0.1, 0.1, 0.01, 0.01, 1e-3]
    )
    assert recipe.epochs * steps == pytest.approx(64_000, rel=2e-3)


@pytest.mark.parametrize(
    ("name", "published"),
    [
        (
            "imagenet-resnet50",
            {
                "optimizer": "nesterov",
                "weight_decay": 1e-4,
                "weight_decay_on": "weights and biases",
                "zero_init_residual": True,
            },
        ),
        # torch.optim.SGD without nesterov; set_weight_decay(norm_weight_decay=0.0).
        (
            "imagenet-resnet50-600",
            {
                "optimizer": "momentum",
                "weight_decay": 2e-5,
                "weight_decay_on": "weights and biases",
                "label_smoothing": 0.1,
                "mixup": 0.2,
                "cutmix": 1.0,
                "ema_start_epoch": 5,
            },
        ),
        # bn_params are those with "bn" in their names.
        (
            "imagenet-resnet18-16epochs",
            {
                "optimizer": "momentum",
                "weight_decay": 5e-5,
                "weight_decay_on": "weights and biases",
                "label_smoothing": 0.1,
                "blur_pool": True,
                "evaluate_flipped": True,
            },
        ),
        ("cifar10-resnet20", {"optimizer": "momentum", "weight_decay": 1e-4, "weight_decay_on": "everything"}),
    ],
)
def test_all_else_is_as_published_and_nothing_more(name, published):
    """What the other tests here run and compare with formulas is what the recipe asks for."""
    nothing = {
        **{"momentum": 0.9, "loss": "cross_entropy", "label_smoothing": 0.0, "mixup": 0.0, "cutmix": 0.0},
        **{"ema_start_epoch": 0, "blur_pool": False, "evaluate_flipped": False, "zero_init_residual": False},
        **{"clip_norm": None, "sync_batch_norm": False, "final_learning_rate": 0.0, "decay_factor": 0.1},
    }
    recipe = find_recipe(name)
    assert {key: getattr(recipe, key) for key in nothing | published} == nothing | published
