"""Recipes are read, checked, and written back; what is wrong is named."""

from __future__ import annotations

import dataclasses

import pytest

import theano_mgpu as tm
from theano_mgpu.recipes import find_recipe, recipe_from, recipe_names, recipe_text, write_recipe

NAMES = ("cifar10-resnet20", "digits", "imagenet-resnet18-16epochs", "imagenet-resnet50", "imagenet-resnet50-600")


def test_the_package_has_its_recipes():
    assert recipe_names() == (*NAMES, "photographs")


@pytest.mark.parametrize("name", [*NAMES, "photographs"])
def test_a_recipe_that_is_written_is_read_back(name, tmp_path):
    recipe = find_recipe(name)
    write_recipe(tmp_path / "recipe.toml", recipe)
    assert find_recipe(tmp_path / "recipe.toml") == recipe


def test_every_setting_is_written_and_read_back():
    values = {"contexts": "cpu:2", "shards": "auto", "rand_augment": [2, 9], "ema": 0.5}
    values |= {"val_fraction": 0.1, "workers": 0, "val_image_size": 8, "val_resize": 9, "max_steps": 3, "patience": 2}
    values |= {"time_limit": 1.5, "learning_rate_batch": 7, "warmup_start": "unscaled", "clip_norm": 1, "output": "ü"}
    values |= {"evaluate_every": 1, "checkpoint_every": 2, "decay_epochs": [1, 2.5], "image_size": "64:96@1:2"}
    recipe = recipe_from(values)
    assert all(value is not None for value in dataclasses.asdict(recipe).values()), "a setting is left out above"
    assert "checkpoint_every = 2" in recipe_text(recipe).splitlines()
    assert recipe.decay_epochs == (1.0, 2.5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"learning_rat": 1}, r"no setting is called 'learning_rat' \(did you mean 'learning_rate'\?\)"),
        ({"qqq": 1}, r"no setting is called 'qqq'\.$"),
        ({"epochs": "ninety"}, r"'epochs' should be a number, not 'ninety'"),
        ({"epochs": True}, r"'epochs' should be a number, not True"),
        ({"batch_size": 2.5}, r"'batch_size' should be a whole number, not 2.5"),
        ({"flip": 1}, r"'flip' should be true or false, not 1"),
        ({"model": "resnet51"}, r"'model' should be \"resnet18\" or .* not 'resnet51'"),
        ({"decay_epochs": [30, "60"]}, r"'decay_epochs' should be a list of numbers, not \[30, '60'\]"),
        ({"rand_augment": [2]}, r"'rand_augment' should be a list of 2 whole numbers, not \[2\]"),
        ({"shards": "many"}, r"'shards' should be a whole number or \"auto\", not 'many'"),
        ({"shards": 0}, r"'shards' should be a number of at least 1"),
        ({"batch_size": 0}, r"'batch_size' should be greater than 0, not 0"),
        ({"weight_decay": -1}, r"'weight_decay' should be 0 or greater"),
        ({"label_smoothing": 2}, r"'label_smoothing' should lie between 0 and 1"),
        ({"learning_rate": float("nan")}, r"'learning_rate' should be a finite number, not nan"),
        ({"image_size": "128-224"}, r"'image_size' should be a number of pixels"),
        ({"image_size": 0}, r"'image_size' should be a number of pixels"),
        ({"schedule": "step"}, r"'decay_epochs' is empty"),
        ({"schedule": "step", "decay_epochs": [2, 1]}, r"'decay_epochs' should increase"),
        ({"warmup_epochs": 90}, r"'warmup_epochs' is 90.0, but the whole run has 90.0 epochs"),
        ({"crop_area": [0.5, 0.1]}, r"'crop_area' should be two parts"),
        ({"warmup_start": 3}, r"'warmup_start' should lie between 0 and 1, or be \"unscaled\""),
        ({"trivial_augment": True, "rand_augment": [2, 9]}, r"'trivial_augment' and 'rand_augment' are both given"),
    ],
)
def test_a_setting_that_cannot_be_is_named(settings, message):
    with pytest.raises(tm.RecipeError, match=rf"^a\.toml: {message}"):
        recipe_from(settings, "a.toml")


def test_a_file_that_is_no_toml_is_named(tmp_path):
    file = tmp_path / "broken.toml"
    file.write_text("epochs = = 3")
    with pytest.raises(tm.RecipeError, match=r"broken\.toml' is no TOML"):
        find_recipe(file)


def test_a_recipe_that_is_not_there_is_named_with_the_nearest():
    with pytest.raises(FileNotFoundError, match=r"no recipe 'imagenet-resnt50' \(did you mean 'imagenet-resnet50'\?\)"):
        find_recipe("imagenet-resnt50")
    with pytest.raises(FileNotFoundError, match=r"no recipe 'gone\.toml'"):
        find_recipe("gone.toml")
