"""Recipes from data to checkpoint, on small images and few of them: one with every setting, and the published ones."""

from __future__ import annotations

import functools
import shutil

import numpy as np
import pytest
from published import ffcv, goyal, torchvision
from small import STEPS_PER_EPOCH, small, write_cifar10

from theano_mgpu.recipes import find_recipe
from theano_mgpu.recipes.running import train
from theano_mgpu.training import MetricsFile, read_checkpoint

#: On top of torchvision's recipe: with it, all settings that change the graphs.
EVERYTHING = {
    "image_size": "32:64@0:1",
    "val_image_size": 64,
    "val_resize": 64,
    "zero_init_residual": True,
    "blur_pool": True,
    "recompute": True,
    "optimizer": "nesterov",
    "weight_decay_on": "everything",
    "loss": "binary_cross_entropy",
    "clip_norm": 1.0,
    "ema": 0.75,
    "evaluate_flipped": True,
    "update_on": "device",
}
#: The published learning rates at these sizes, by the epoch. One of batches of 256 or 1024 is scaled down to 16.
RATES = {
    "imagenet-resnet50": lambda epoch: goyal(epoch, 0.1 * 16 / 256),
    "imagenet-resnet50-600": lambda epoch: torchvision(epoch, 0.5 * 16 / 1024),
    "everything": lambda epoch: torchvision(epoch, 0.5 * 16 / 1024),
    "imagenet-resnet18-16epochs": lambda epoch: ffcv(epoch, 0.5 * 16 / 1024),
    "cifar10-resnet20": lambda epoch: 0.1,
}
PUBLISHED = tuple(name for name in RATES if name != "everything")


@pytest.fixture(scope="module")
def finished(photographs, tmp_path_factory):
    """``finished(name)``: the folder and the outcome of an uninterrupted run, trained once."""

    @functools.cache
    def call(name):
        root = tmp_path_factory.mktemp("run")
        if name == "cifar10-resnet20":
            write_cifar10(root / "data" / "cifar-10-batches-bin")
            recipe = small(name, root / "data", image_size=32, val_resize=32)
        elif name == "everything":
            recipe = small("imagenet-resnet50-600", photographs, model="resnet20", **EVERYTHING)
        else:
            recipe = small(name, photographs)
        return root / name, train(recipe.set(checkpoint_every=1, keep=9), root / name, say=lambda line: None)

    return call


def steps_of(folder):
    return {line["step"]: line for line in MetricsFile(folder / "metrics.jsonl").lines() if not line.get("final")}


def arrays_of(folder, step):
    return read_checkpoint(folder / f"checkpoints/step-{step:08}.safetensors").arrays


NAMES = ["everything", *(pytest.param(name, marks=pytest.mark.slow) for name in PUBLISHED)]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:fit.*going on")
def test_a_recipe_runs_and_goes_on_elsewhere_to_the_same_bits(name, finished, tmp_path):
    """Over an epoch's end, evaluated; and from the middle of one, on two devices instead of four."""
    folder, outcome = finished(name)
    assert (outcome.steps, outcome.stopped_by) == (5, "max_steps")
    lines = steps_of(folder)
    assert sorted(lines) == [1, 2, 3, 4, 5]
    assert all(np.isfinite(line["loss"]) and line["loss"] > 0 for line in lines.values())
    evaluated = {key for key in lines[STEPS_PER_EPOCH] if key.endswith("_top1")}
    averaged = find_recipe(folder / "recipe.toml").ema is not None
    assert evaluated == ({"val_top1", "ema_top1"} if averaged else {"val_top1"})

    elsewhere = tmp_path / "elsewhere"
    shutil.copytree(folder, elsewhere)
    for path in (elsewhere / "checkpoints").iterdir():
        if path.name != "step-00000004.safetensors":
            path.unlink()
    recipe = find_recipe(elsewhere / "recipe.toml").set(contexts="cpu:2")
    again = train(recipe, elsewhere, resume=True, say=lambda line: None)
    assert again.checksum == outcome.checksum
    assert again.metrics == outcome.metrics
    first, second = arrays_of(folder, 5), arrays_of(elsewhere, 5)
    assert first.keys() == second.keys()
    for name, array in first.items():
        np.testing.assert_array_equal(array, second[name], err_msg=name)


@pytest.mark.parametrize("name", NAMES)
def test_the_learning_rate_of_a_run_is_the_published_one(name, finished):
    folder, _ = finished(name)
    found = {step: line["learning_rate"] for step, line in steps_of(folder).items()}
    assert found == {step: pytest.approx(RATES[name]((step - 1) / STEPS_PER_EPOCH)) for step in range(1, 6)}


@pytest.mark.parametrize(
    ("name", "decay"), [("everything", 0.75), pytest.param("imagenet-resnet50-600", 0.9999658, marks=pytest.mark.slow)]
)
def test_averages_are_the_parameters_until_their_start_and_follow_the_formula_then(name, decay, finished):
    """ema_start_epoch is 1, of three steps; batch norm's statistics are averaged too."""
    folder, _ = finished(name)
    before, after = arrays_of(folder, 3), arrays_of(folder, 4)
    averaged = [name.removesuffix(".ema") for name in after if name.endswith(".ema")]
    assert {"conv1.weight", "fc.bias", "bn1.bias", "bn1.running_var"} <= set(averaged)
    for step in (1, 2, 3):
        arrays = arrays_of(folder, step)
        for name in averaged:
            np.testing.assert_array_equal(arrays[f"{name}.ema"], arrays[name], err_msg=name)
    for name in averaged:
        keep = np.float32(decay)
        expected = keep * before[name] + (np.float32(1) - keep) * after[name]
        np.testing.assert_allclose(after[f"{name}.ema"], expected, rtol=1e-6, atol=1e-9, err_msg=name)
    assert not np.array_equal(after["conv1.weight.ema"], after["conv1.weight"])


DIGITS = {"max_steps": 4, "contexts": "cpu:4", "shards": 4, "log_every": 1, "tensorboard": False}


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """``digits(**settings)``: the checksum and the losses of four steps on scikit-learn's digits."""

    def call(**settings):
        folder = tmp_path_factory.mktemp("digits") / "run"
        outcome = train(find_recipe("digits").set(**DIGITS | settings), folder, say=lambda line: None)
        return outcome.checksum, [line["loss"] for line in steps_of(folder).values()]

    return call


@pytest.fixture(scope="module")
def plain_digits(digits):
    return digits()


@pytest.mark.slow
@pytest.mark.parametrize("setting", [{"recompute": True}, {"update_on": "device"}, {"shards": "auto"}], ids=str)
def test_how_a_run_is_computed_does_not_change_its_bits(setting, digits, plain_digits):
    """Of "auto", which is one shard a device here, too."""
    assert digits(**setting) == plain_digits


@pytest.mark.slow
@pytest.mark.parametrize(
    ("setting", "near"),
    [
        ({"precision": "bfloat16"}, 2e-3),
        ({"precision": "float16"}, 5e-4),
        ({"sync_batch_norm": True}, 2e-2),
        ({"shards": 3}, 2e-2),
    ],
    ids=str,
)
def test_what_rounds_or_normalises_otherwise_trains_nearly_alike(setting, near, digits, plain_digits):
    checksum, losses = digits(**setting)
    assert checksum != plain_digits[0]
    assert losses == pytest.approx(plain_digits[1], rel=near)
