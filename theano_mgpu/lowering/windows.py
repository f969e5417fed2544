"""What all windows over a batch of images have at each position inside them, as strided slices, which XLA fuses."""

from __future__ import annotations

import functools
import operator
from collections.abc import Iterable, Iterator

import jax
import jax.numpy as jnp
from jax import lax

from theano_mgpu.nn.windows import Windows

__all__ = ["scattered", "slices"]


def slices(x: jax.Array, windows: Windows, filling: float) -> Iterator[jax.Array]:
    """For each position inside a window, row by row: what all windows have there, ``filling`` in the padding."""
    padded = jnp.pad(x, windows.pad_width, constant_values=filling)
    return (padded[where] for where in windows.slices())


def scattered(parts: Iterable[jax.Array], windows: Windows) -> jax.Array:
    """The transpose of ``slices``: the sum of each position's part, put where it came from."""
    spans = windows.spans()

    def placed(part: jax.Array, start: tuple[int, int]) -> jax.Array:
        # Negative edges cut off what fell on the padding.
        edges = []
        for axis in range(2):
            low = start[axis] - windows.padding[axis][0]
            high = windows.image[axis] - low - spans[axis]
            edges.append((low, high, windows.stride[axis] - 1))
        return lax.pad(part, jnp.zeros((), part.dtype), ((0, 0, 0), *edges, (0, 0, 0)))

    return functools.reduce(operator.add, map(placed, parts, windows.starts()))
