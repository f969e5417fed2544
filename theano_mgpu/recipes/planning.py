"""What a recipe's training would need, and about how fast it would go, before anything runs."""

from __future__ import annotations

import os
import statistics
import time
from concurrent.futures import ThreadPoolExecutor

import jax
import jax.numpy as jnp
import numpy as np

from theano_mgpu.devices import Contexts, contexts
from theano_mgpu.plan import Plan
from theano_mgpu.recipes.graphs import TrainingSteps, training_steps
from theano_mgpu.recipes.settings import Recipe
from theano_mgpu.scaling import Work

__all__ = ["host_memory_speed", "plan", "product_speed", "step_work"]

#: A ResNet-50 step's operations a second, over those of a product of large matrices: 0.6 on two cores (ResNet-18: 0.5).
_OF_PRODUCTS = 0.6
_SIDE = 2048
# On simulated devices a step's time grows with its images, so few are enough: about a second a step on two cores.
_MEASURED_FLOPS, _MEASURED_STEPS = 1e11, 3
# Bytes of gradients that travel as one vector, at the most about.
_VECTOR = 16_000_000


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


def step_work(recipe: Recipe, num_classes: int, planned: Plan, seconds: float | None = None) -> tuple[Work, str]:
    """What a step of the recipe is to the model of ``theano_mgpu.scaling``, and the platform of its devices.

    ``seconds`` is what a device computes for its part of the batch. If not given, a few real steps on random images run
    on all contexts side by side: a shard on each, or a part of one on simulated devices. Raises what building and
    the step raise.
    """
    devices = contexts(recipe.contexts)
    steps = training_steps(recipe.set(update_on="host", shards=len(devices)), num_classes, 1, devices)
    gradients = sum(param.get_value(borrow=True).nbytes for param in steps.store.trainable())
    updated = [variable.get_value(borrow=True) for variable in steps.train.cut.updated]
    examples = planned.shard_size * planned.rounds
    if seconds is None:
        images = planned.shard_size
        if devices.platform == "cpu":
            images = min(images, max(1, int(_MEASURED_FLOPS / planned.flops * planned.batch_size / len(devices))))
        seconds = _compute_seconds(steps, recipe, images, num_classes) * examples / images
    written = sum(value.nbytes for value in updated if isinstance(value, np.ndarray))
    work = Work(
        compute=seconds,
        examples=examples,
        gradients=gradients,
        updated=2 * written / gradients,
        arrays=-(-gradients // _VECTOR),
    )
    return work, devices.platform


def _compute_seconds(steps: TrainingSteps, recipe: Recipe, images: int, num_classes: int) -> float:
    """Of the device program, with so many images on each device; the rule runs besides, with a learning rate of 0."""
    random, size = np.random.default_rng(0), recipe.image_sizes[1]
    batch = random.integers(256, size=(images * len(steps.train.contexts), size, size, 3), dtype=np.uint8)
    labels = random.integers(num_classes, size=len(batch), dtype=np.int32)
    measured = []
    for step in range(_MEASURED_STEPS + 1):
        steps.train(batch, labels, 0.0)
        if step:  # the first one compiles
            measured.append(steps.train.seconds["copy"] + steps.train.seconds["compute"])
    return statistics.median(measured)


def host_memory_speed() -> float:
    """Bytes/s that all cores together read and write, as they copy."""
    cores, numbers = len(os.sched_getaffinity(0)), 2**24
    pairs = [(np.ones(numbers // cores, np.float32), np.zeros(numbers // cores, np.float32)) for _ in range(cores)]
    taken = []
    with ThreadPoolExecutor(cores) as pool:
        for _ in range(5):
            begun = time.perf_counter()
            list(pool.map(lambda pair: np.copyto(*reversed(pair)), pairs))
            taken.append(time.perf_counter() - begun)
    return 2 * sum(source.nbytes for source, _ in pairs) / min(taken)
