"""Initial values: every function here returns an ``init(rng, shape)``, to be given to ``store.param`` or to a layer.

Filters are (height, width, in, out) and matrices (in, out): the last axis is a unit's output, the one before its input.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import numpy as np

__all__ = ["constant", "glorot_uniform", "he_normal", "ones", "zeros"]

Init = Callable[[np.random.Generator, tuple[int, ...]], np.ndarray]


def he_normal(*, gain: float = math.sqrt(2), mode: Literal["fan_in", "fan_out"] = "fan_in") -> Init:
    """Normal numbers that keep the size of activations (or of gradients) through layers of rectifiers.

    value ~ N(0, gain**2 / fan), fan = height * width * in, or height * width * out with ``mode="fan_out"``

    ``gain`` is sqrt(2) for rectifiers and 1 for linear units. Raises ValueError for a shape of fewer than two axes, and
    for another mode.

    He et al., "Delving Deep into Rectifiers", ICCV 2015, eq. 10 and 14.
    """
    if mode not in ("fan_in", "fan_out"):
        raise ValueError(f"he_normal(): 'mode' should be 'fan_in' or 'fan_out', not {mode!r}.")

    def init(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        fan_in, fan_out = _fans("he_normal", shape)
        deviation = gain / math.sqrt(fan_in if mode == "fan_in" else fan_out)
        return rng.standard_normal(shape, dtype=np.float32) * np.float32(deviation)

    return init


def glorot_uniform(*, gain: float = 1.0) -> Init:
    """Uniform numbers that keep both activations and gradients in size through linear layers.

    value ~ U(-a, a), a = gain * sqrt(6 / (fan_in + fan_out)), a fan being height * width * in, or out

    Raises ValueError for a shape of fewer than two axes.

    Glorot and Bengio, "Understanding the difficulty of training deep feedforward neural networks", AISTATS 2010,
    eq. 16.
    """

    def init(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        limit = gain * math.sqrt(6 / sum(_fans("glorot_uniform", shape)))
        return rng.uniform(-limit, limit, shape).astype("float32")

    return init


def constant(value: float) -> Init:
    """The same number everywhere."""

    def init(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
        return np.full(shape, value, dtype="float64")

    return init


def zeros() -> Init:
    """Zero everywhere."""
    return constant(0.0)


def ones() -> Init:
    """One everywhere."""
    return constant(1.0)


def _fans(function: str, shape: tuple[int, ...]) -> tuple[int, int]:
    if len(shape) < 2 or 0 in shape:
        raise ValueError(
            f"{function}(): a shape (..., in, out) without empty axes is needed, not {tuple(shape)}; "
            "use constant, zeros or ones for biases."
        )
    field = math.prod(shape[:-2])
    return field * shape[-2], field * shape[-1]
