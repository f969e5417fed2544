"""The resize's inner loops, compiled by Numba. Imported when the first image is resized: Numba takes half a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import boolean, float32, float64, int64, types, uint8, void

__all__ = ["resize_into", "triangle_weights"]

# Read-only arrays are taken as well as others, by one and the same machine code.
_PIXELS = types.Array(uint8, 2, "C", readonly=True)
_INDICES = types.Array(int64, 1, "C", readonly=True)
_WEIGHTS = types.Array(float32, 2, "C", readonly=True)


def _compiled(signature: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Kept on disk between runs where some folder can be written to, or else compiled in each process (a second).

    Never with fastmath: sums stay in the written order, so that every processor gives the same bits.
    """

    def compile_function(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return numba.njit(signature, nogil=True, cache=True)(function)
        except RuntimeError:  # "cannot cache function: no locator available"
            return numba.njit(signature, nogil=True)(function)

    return compile_function


@_compiled(void(float64, float64, int64, int64, int64[::1], float32[:, ::1]))
def triangle_weights(start, extent, low, high, firsts, weights):  # type: ignore[no-untyped-def]
    """The triangle filter along one axis, as in Pillow's ``precompute_coeffs`` for BILINEAR.

    Output o has its centre at ``start + (o + 1/2) extent / outputs``; inputs from ``low`` to below ``high`` count. The
    first input of each output goes into ``firsts``, its weights into a row of ``weights``, with zeros behind them.
    """
    outputs = len(firsts)
    scale = extent / outputs
    support = max(scale, 1.0)
    for output in range(outputs):
        centre = start + (output + 0.5) * scale
        first = max(int(centre - support + 0.5), low)
        end = min(int(centre + support + 0.5), high)
        total = 0.0
        for tap in range(weights.shape[1]):
            weight = 0.0
            if first + tap < end:
                weight = max(1.0 - abs((first + tap - centre + 0.5) / support), 0.0)
            total += weight
            weights[output, tap] = weight
        for tap in range(weights.shape[1]):
            weights[output, tap] /= total
        firsts[output] = first


@_compiled(void(_PIXELS, int64, int64, _INDICES, _WEIGHTS, _INDICES, _WEIGHTS, boolean, uint8[:, ::1]))
def resize_into(pixels, left, right, firsts_down, weights_down, firsts_across, weights_across, flip, out):  # type: ignore[no-untyped-def]
    """``out`` := both filters over ``pixels``, each ``(rows, columns * 3)``; ``flip`` turns left to right.

    The filter across needs columns from ``left`` to below ``right``.

    Row by row: first down, over whole rows of the crop, which the compiler makes wide vector instructions of, then
    across. The number of taps across is even. Unsigned indices, as signed ones are first checked for being negative:
    across takes half the time with them.
    """
    length = np.uint64(3 * (right - left))
    one, two, three = np.uint64(1), np.uint64(2), np.uint64(3)
    taps = np.uint64(weights_across.shape[1])
    columns = np.uint64(out.shape[1]) // three
    row = np.zeros(length + three * taps, np.float32)  # behind the crop zeros, for weights that are zero
    filtered = np.empty(out.shape[1], np.float32)
    for output in range(out.shape[0]):
        for i in range(length):
            row[i] = np.float32(0.5)  # for rounding: weights add up to one
        for tap in range(weights_down.shape[1]):
            weight = weights_down[output, tap]
            if weight != 0:
                line = pixels[firsts_down[output] + tap, 3 * left : 3 * right]
                for i in range(length):
                    row[i] += weight * np.float32(np.int32(line[i]))
        for column in range(columns):
            source = columns - one - column if flip else column
            place = np.uint64(firsts_across[source] - left) * three
            red = green = blue = np.float32(0)
            for tap in range(np.uint64(0), taps, two):
                weight = weights_across[source, tap]
                red += weight * row[place]
                green += weight * row[place + one]
                blue += weight * row[place + two]
                place += three
                weight = weights_across[source, tap + one]
                red += weight * row[place]
                green += weight * row[place + one]
                blue += weight * row[place + two]
                place += three
            place = column * three
            filtered[place] = red
            filtered[place + one] = green
            filtered[place + two] = blue
        finished = out[output]
        for i in range(np.uint64(out.shape[1])):
            finished[i] = np.uint8(np.int32(filtered[i]))
