"""The package's recipes as they are, but for small images, few of them, and few steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from theano_mgpu.recipes import Recipe, find_recipe

__all__ = ["STEPS_PER_EPOCH", "small", "write_cifar10"]

STEPS_PER_EPOCH = 3  # 52 images in batches of 16


def small(name: str, data: Path, **changes: Any) -> Recipe:
    """Four shards of four images of 16 pixels, or of 32 to 64 where they grow, for five steps: an epoch and two more.

    Averages that start after some epochs start after one.
    """
    recipe = find_recipe(name)
    grows = ":" in str(recipe.image_size)
    settings = {
        "data": str(data),
        "image_size": "32:64@0:1" if grows else 16,
        "val_image_size": None if recipe.val_image_size is None else (64 if grows else 24),
        "val_resize": None if recipe.val_resize is None else 28,
        "batch_size": 16,
        "max_steps": 5,
        "shards": 4,
        "contexts": "cpu:4",
        "workers": 0,
        "log_every": 1,
        "ema_start_epoch": 1 if recipe.ema_start_epoch else 0,
        "tensorboard": False,
    }
    return recipe.set(**settings | changes)


def write_cifar10(folder: Path) -> None:
    """CIFAR-10's binary version with 50 training and 20 test images, which are noise."""
    rng = np.random.default_rng(0)
    folder.mkdir(parents=True)
    for name, count in [*((f"data_batch_{number}.bin", 10) for number in range(1, 6)), ("test_batch.bin", 20)]:
        records = rng.integers(0, 256, (count, 1 + 3 * 32 * 32), np.uint8)
        records[:, 0] = np.arange(count) % 10
        (folder / name).write_bytes(records.tobytes())
    (folder / "batches.meta.txt").write_text("\n".join(f"class{number}" for number in range(10)) + "\n")
