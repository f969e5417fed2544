"""The published learning rates, as functions of the epoch and of the highest rate."""

from __future__ import annotations

import math

__all__ = ["ffcv", "goyal", "torchvision"]


def goyal(epoch: float, scaled: float) -> float:
    """Section 5.1, and 2.2 for the warm-up: from 0.1, where that is less than the scaled rate, over five epochs."""
    if epoch < 5:
        start = min(0.1, scaled)
        return start + (scaled - start) * epoch / 5
    return scaled * 0.1 ** sum(epoch >= boundary for boundary in (30, 60, 80))


def torchvision(epoch: float, scaled: float) -> float:
    """LinearLR(start_factor=0.01, total_iters=5), then CosineAnnealingLR(T_max=595), stepped once an epoch."""
    epoch = math.floor(epoch)
    if epoch < 5:
        return scaled * (0.01 + 0.99 * epoch / 5)
    return scaled * (1 + math.cos(math.pi * (epoch - 5) / 595)) / 2


def ffcv(epoch: float, scaled: float) -> float:
    """numpy.interp over (0, 2, 16) epochs of (1e-4 lr, lr, 0), and linear within an epoch."""
    return scaled * (1e-4 + (1 - 1e-4) * epoch / 2 if epoch < 2 else (16 - epoch) / 14)
