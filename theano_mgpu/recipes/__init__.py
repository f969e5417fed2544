"""Recipes: every setting of a training run in a TOML file, and the training that is built of it."""

from __future__ import annotations

from theano_mgpu.recipes.files import find_recipe, recipe_from, recipe_names, recipe_text, write_recipe
from theano_mgpu.recipes.learning_rate import scaling_sentence, schedule_of
from theano_mgpu.recipes.settings import Recipe

__all__ = [
    "Recipe",
    "find_recipe",
    "recipe_from",
    "recipe_names",
    "recipe_text",
    "scaling_sentence",
    "schedule_of",
    "write_recipe",
]
