"""A recipe's learning rate as a function of the step."""

from __future__ import annotations

from theano_mgpu import schedules
from theano_mgpu.recipes.settings import Recipe
from theano_mgpu.schedules import Schedule

__all__ = ["scaling_sentence", "schedule_of"]


def schedule_of(recipe: Recipe, steps_per_epoch: int) -> Schedule:
    """The learning rate at each step, from 0; epochs are counted in ``steps_per_epoch``."""

    def steps(epochs: float) -> int:
        return round(epochs * steps_per_epoch)

    peak, final, start = recipe.scaled_learning_rate, recipe.final_learning_rate, _warmup_start(recipe)
    total = max(steps(recipe.epochs), 1)
    warmup = min(steps(recipe.warmup_epochs), total - 1)
    match recipe.schedule:
        case "cosine":
            rate = schedules.warmup_cosine(peak, total, warmup, final, start)
        case "polynomial":
            rate = schedules.polynomial(peak, total, recipe.power, final, warmup, start)
        case "step":
            boundaries = [steps(epoch) for epoch in recipe.decay_epochs]
            rate = schedules.step_decay(peak, boundaries, recipe.decay_factor, warmup, start)
        case _:
            rate = schedules.linear_warmup(schedules.constant(peak), warmup, start)
    return schedules.held(rate, steps_per_epoch) if recipe.learning_rate_changes == "epoch" else rate


def scaling_sentence(recipe: Recipe) -> str:
    """How the learning rate follows from the batch size."""
    if recipe.learning_rate_batch is None:
        return f"learning rate {recipe.learning_rate:g}"
    return (
        f"learning rate {recipe.scaled_learning_rate:g}: {recipe.learning_rate:g} for a batch of "
        f"{recipe.learning_rate_batch}, scaled in proportion to {recipe.batch_size} (linear scaling: Goyal et al., "
        "arXiv 1706.02677, section 2.1)"
    )


def _warmup_start(recipe: Recipe) -> float | None:
    if recipe.warmup_start != "unscaled":
        return None if recipe.warmup_start is None else float(recipe.warmup_start)
    return min(recipe.learning_rate / recipe.scaled_learning_rate, 1.0) if recipe.learning_rate else 1.0
