"""What a recipe's training would need, and about how fast it would go, before anything runs."""

from __future__ import annotations

import time

import jax
import jax.numpy as jnp

from theano_mgpu.devices import Contexts, contexts
from theano_mgpu.plan import Plan
from theano_mgpu.recipes.graphs import training_steps
from theano_mgpu.recipes.settings import Recipe

__all__ = ["plan", "product_speed"]

#: A ResNet-50 step's operations a second, over those of a product of large matrices: 0.6 on two cores (ResNet-18: 0.5).
_OF_PRODUCTS = 0.6
_SIDE = 2048


def plan(recipe: Recipe, num_classes: int) -> tuple[Plan, float]:
    """``step.plan`` of a recipe's training step, and about how many images a second it would train on.

    The speed is that of a product of matrices on the same devices, measured for a second, times what part of it a
    residual network was seen to reach. Raises what building and ``step.plan`` raise.
    """
    devices = contexts(recipe.contexts)
    steps = training_steps(recipe, num_classes, 1, devices)
    size = recipe.image_sizes[1]
    planned = steps.train.plan(recipe.batch_size, images=(size, size, 3))
    return planned, _OF_PRODUCTS * product_speed(devices, recipe.precision) * recipe.batch_size / planned.flops


def product_speed(devices: Contexts, precision: str = "float32") -> float:
    """Floating-point operations a second of a product of matrices on all devices at once."""
    dtype = {"bfloat16": jnp.bfloat16, "float16": jnp.float16}.get(precision, jnp.float32)
    matrices = [jax.device_put(jnp.ones((_SIDE, _SIDE), dtype), context.device) for context in devices]
    product = jax.jit(jnp.matmul)

    def seconds(repeats: int) -> float:
        started = time.perf_counter()
        for _ in range(repeats):
            products = [product(matrix, matrix) for matrix in matrices]
        jax.block_until_ready(products)
        return time.perf_counter() - started

    seconds(1)  # compiles
    repeats = max(1, round(0.3 / seconds(1)))
    return 2 * _SIDE**3 * len(devices) * repeats / min(seconds(repeats) for _ in range(3))
