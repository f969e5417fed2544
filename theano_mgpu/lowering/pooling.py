"""Pools on a device, as sums and maxima of strided slices, which XLA fuses.

The gradient of a 3x3 max pool of (8, 112, 112, 64) takes 111 ms on 2 cores with XLA's select-and-scatter, 27 ms as
JAX's derivative of nine maxima; what stands below took 0.7 of the latter's time on a busy machine.
"""

from __future__ import annotations

import functools
import operator
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from theano_mgpu.lowering.dispatch import lowers
from theano_mgpu.lowering.windows import scattered, slices
from theano_mgpu.nn.pooling import AveragePool2d, AveragePool2dGradient, MaxPool2d, MaxPool2dGradient, MaxPool2dPick
from theano_mgpu.nn.windows import Windows

__all__: list[str] = []

# Every position inside a window is an operation to compile; larger windows go to XLA's own window operations.
_LARGEST_UNROLLED = 64  # positions


@lowers(MaxPool2d)
def max_pool2d(op: MaxPool2d, node: Any, **_: Any) -> Callable[..., jax.Array]:
    def pool(x: jax.Array) -> jax.Array:
        windows = op.windows(x.shape)
        if _is_large(windows):
            return _reduced(x, windows, -np.inf, lax.max)
        return functools.reduce(jnp.maximum, slices(x, windows, -np.inf))

    return pool


@lowers(MaxPool2dGradient)
def max_pool2d_gradient(op: MaxPool2dGradient, node: Any, **_: Any) -> Callable[..., jax.Array]:
    def gradient(x: jax.Array, y: jax.Array, g: jax.Array) -> jax.Array:
        windows = op.windows(x.shape)
        if _is_large(windows):
            return jax.vjp(lambda images: _reduced(images, windows, -np.inf, lax.max), x)[1](g.astype(x.dtype))[0]
        rest, parts = _wide(g), []
        # NaN equals nothing, so the padding is never the largest.
        for entries in slices(x, windows, np.nan):
            # Subtracting what went to the first largest leaves none for the next; half the time of a boolean mask.
            parts.append(jnp.where(entries == y, rest, jnp.zeros_like(rest)))
            rest = rest - parts[-1]
        return scattered(parts, windows).astype(x.dtype)

    return gradient


@lowers(MaxPool2dPick)
def max_pool2d_pick(op: MaxPool2dPick, node: Any, **_: Any) -> Callable[..., jax.Array]:
    def pick(x: jax.Array, y: jax.Array, u: jax.Array) -> jax.Array:
        windows = op.windows(x.shape)
        if _is_large(windows):
            return jax.jvp(lambda images: _reduced(images, windows, -np.inf, lax.max), (x,), (u.astype(x.dtype),))[1]
        picked = jnp.zeros_like(y)
        positions = list(zip(slices(x, windows, np.nan), slices(u, windows, 0), strict=True))
        for entries, candidates in reversed(positions):
            picked = jnp.where(entries == y, candidates, picked)
        return picked

    return pick


@lowers(AveragePool2d)
def average_pool2d(op: AveragePool2d, node: Any, **_: Any) -> Callable[..., jax.Array]:
    def pool(x: jax.Array) -> jax.Array:
        windows = op.windows(x.shape)
        return (_summed(_wide(x), windows) / _positions(windows)).astype(x.dtype)

    return pool


@lowers(AveragePool2dGradient)
def average_pool2d_gradient(op: AveragePool2dGradient, node: Any, **_: Any) -> Callable[..., jax.Array]:
    def gradient(x: jax.Array, g: jax.Array) -> jax.Array:
        windows = op.windows(x.shape)
        share = _wide(g) / _positions(windows)
        if _is_large(windows):
            spread = jax.linear_transpose(lambda images: _summed(images, windows), _wide(x))(share)[0]
        else:
            spread = scattered((share for _ in range(_positions(windows))), windows)
        return spread.astype(x.dtype)

    return gradient


def _positions(windows: Windows) -> int:
    return windows.size[0] * windows.size[1]


def _is_large(windows: Windows) -> bool:
    return _positions(windows) > _LARGEST_UNROLLED


def _wide(x: jax.Array) -> jax.Array:
    """Sums are taken in at least single precision."""
    return x.astype(jnp.promote_types(x.dtype, jnp.float32))


def _reduced(x: jax.Array, windows: Windows, start: float, operation: Callable[..., Any]) -> jax.Array:
    initial = np.asarray(start, x.dtype)
    return lax.reduce_window(x, initial, operation, (1, *windows.size, 1), (1, *windows.stride, 1), windows.pad_width)


def _summed(x: jax.Array, windows: Windows) -> jax.Array:
    if _is_large(windows):
        return _reduced(x, windows, 0, lax.add)
    return functools.reduce(operator.add, slices(x, windows, 0))
