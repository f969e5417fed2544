"""A recipe and its data to everything that ``tm.training.fit`` needs."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial

from theano_mgpu.data import Augmentation, ColourJitter, Pipeline, RandAugment, RandomErasing, TrivialAugment, pipeline
from theano_mgpu.devices import Contexts
from theano_mgpu.recipes.datasets import Dataset
from theano_mgpu.recipes.graphs import TrainingSteps, training_steps
from theano_mgpu.recipes.learning_rate import schedule_of
from theano_mgpu.recipes.settings import Recipe
from theano_mgpu.schedules import Schedule
from theano_mgpu.step import Step
from theano_mgpu.training import evaluate

__all__ = ["Training", "build", "training_images", "validation_images"]


@dataclass(frozen=True)
class Training:
    """Steps, batches and learning rate. ``predict`` is the step by whose top-1, ``best``, checkpoints are judged."""

    steps: TrainingSteps
    schedule: Schedule
    train: Pipeline
    val: Pipeline

    @property
    def predict(self) -> Step:
        return self.steps.predict_averaged or self.steps.predict

    @property
    def best(self) -> str:
        return "ema_top1" if self.steps.predict_averaged else "val_top1"

    @property
    def evaluations(self) -> dict[str, Callable[[], dict[str, float]]]:
        steps = {"val": self.steps.predict}
        if self.steps.predict_averaged is not None:
            steps["ema"] = self.steps.predict_averaged
        return {name: partial(evaluate, step, self.val) for name, step in steps.items()}


@contextmanager
def build(recipe: Recipe, dataset: Dataset, contexts: Contexts) -> Iterator[Training]:
    """The training that a recipe describes; the processes that decode images end with the ``with`` block.

    Nothing is compiled before the first step. Raises ValueError for settings that do not fit each other or the data.
    """
    with training_images(recipe, dataset) as train, validation_images(recipe, dataset) as val:
        steps_per_epoch = train.batches_per_epoch
        steps = training_steps(recipe, len(dataset.classes), steps_per_epoch, contexts)
        yield Training(steps, schedule_of(recipe, steps_per_epoch), train, val)


def training_images(recipe: Recipe, dataset: Dataset) -> Pipeline:
    """Shuffled, cropped and augmented as the recipe says."""
    return pipeline(
        dataset.train,
        recipe.batch_size,
        train=True,
        image_size=recipe.image_size,
        seed=recipe.seed,
        augmentation=_augmentation(recipe),
        repeats=recipe.repeats,
        epochs=math.ceil(recipe.epochs),
        workers=recipe.workers,
        on_bad_image=recipe.on_bad_image,
    )


def validation_images(recipe: Recipe, dataset: Dataset) -> Pipeline:
    """The centre of every validation image, once and in order."""
    return pipeline(
        dataset.val,
        recipe.batch_size,
        train=False,
        image_size=recipe.evaluation_size,
        augmentation=Augmentation(resize=recipe.evaluation_resize),
        workers=recipe.workers,
        on_bad_image=recipe.on_bad_image,
    )


def _augmentation(recipe: Recipe) -> Augmentation:
    strength = recipe.colour_jitter
    return Augmentation(
        area=recipe.crop_area,
        padding={"resized": None, "padded": 4, "none": 0}[recipe.crop],
        flip=0.5 if recipe.flip else 0.0,
        jitter=ColourJitter(strength, strength, strength) if strength else None,
        # Bilinear, as torchvision's training script asks for; its classes' own default, and ours, is nearest.
        rand_augment=RandAugment(*recipe.rand_augment, interpolation="bilinear") if recipe.rand_augment else None,
        trivial_augment=TrivialAugment(interpolation="bilinear") if recipe.trivial_augment else None,
        erasing=RandomErasing(recipe.random_erasing) if recipe.random_erasing else None,
    )
