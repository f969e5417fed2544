"""What recipes do to images, against the published descriptions, written out here."""

from __future__ import annotations

import numpy as np
import pytest

from theano_mgpu.data import Augmentation, ColourJitter, Examples, RandAugment, RandomErasing, TrivialAugment
from theano_mgpu.recipes import Recipe, find_recipe
from theano_mgpu.recipes.building import training_images, validation_images
from theano_mgpu.recipes.datasets import Dataset

INCEPTION = {"area": (0.08, 1.0), "ratio": (3 / 4, 4 / 3), "flip": 0.5}


def pipelines(recipe):
    count = recipe.batch_size
    examples = Examples(np.zeros((count, 8, 8, 3), np.uint8), np.zeros(count, np.int32))
    dataset = Dataset("none", examples, examples, ("a",))
    return training_images(recipe, dataset), validation_images(recipe, dataset)


@pytest.mark.parametrize(
    ("name", "train", "size", "resize", "val_size"),
    [
        ("imagenet-resnet50", INCEPTION, 224, 256, 224),
        # presets.py: crop, flip, TrivialAugmentWide(interpolation=bilinear), RandomErasing(p=0.1) of normalised zeros.
        (
            "imagenet-resnet50-600",
            INCEPTION
            | {
                "trivial_augment": TrivialAugment(bins=31, interpolation="bilinear"),
                "erasing": RandomErasing(0.1, area=(0.02, 0.33), ratio=(0.3, 3.3), fill=(124, 116, 104)),
            },
            176,
            232,
            224,
        ),
        # CenterCropRGBImageDecoder(ratio=224/256) of the shorter side, resized to 256.
        ("imagenet-resnet18-16epochs", INCEPTION, 160, round(256 * 256 / 224), 256),
        ("cifar10-resnet20", {"padding": 4, "flip": 0.5}, 32, 32, 32),
    ],
)
def test_images_are_cropped_and_augmented_as_published(name, train, size, resize, val_size):
    training, validation = pipelines(find_recipe(name))
    assert training.reader.augmentation == Augmentation(**train)
    assert training.image_size_at(0) == size
    assert validation.image_size_at(0) == val_size
    assert validation.reader.augmentation.resize_for(val_size) == resize
    assert training.reader.repeats == (4 if name == "imagenet-resnet50-600" else 1)


def test_other_settings_of_images():
    recipe = Recipe(batch_size=4, colour_jitter=0.3, rand_augment=(3, 7), flip=False, crop_area=(0.5, 0.9), seed=4)
    training, _ = pipelines(recipe)
    assert training.reader.augmentation == Augmentation(
        area=(0.5, 0.9),
        flip=0.0,
        jitter=ColourJitter(0.3, 0.3, 0.3, 0.0),
        rand_augment=RandAugment(3, 7, 31, interpolation="bilinear"),
    )
    assert training.reader.seed == 4
    assert pipelines(Recipe(batch_size=4, crop="none"))[0].reader.augmentation.padding == 0
