"""The resize's inner loops, compiled by Numba. Imported when the first image is resized: Numba takes half a second."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numba
import numpy as np
from numba import boolean, float32, float64, int64, types, uint8, void

from theano_mgpu.data.four_floats import load_four, no_four, store_four, with_weighted

__all__ = ["resize_into", "triangle_weights"]

# Read-only arrays are taken as well as others, by one and the same machine code.
_PIXELS = types.Array(uint8, 2, "C", readonly=True)
_AXIS = types.Tuple((float64, float64, int64, int64))


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


@_compiled(types.Tuple((int64[::1], float32[:, ::1]))(float64, float64, int64, int64, int64))
def triangle_weights(start, extent, low, high, outputs):  # type: ignore[no-untyped-def]
    """The triangle filter along one axis, as in Pillow's ``precompute_coeffs`` for BILINEAR.

    Output o has its centre at ``start + (o + 1/2) extent / outputs``; inputs from ``low`` to below ``high`` count.
    Returns the first input of each output, and a row of weights for each, even in number, with zeros at its end.
    """
    scale = extent / outputs
    support = max(scale, 1.0)
    taps = int(np.ceil(2 * support))
    firsts = np.empty(outputs, np.int64)
    weights = np.empty((outputs, taps + taps % 2), np.float32)
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
    return firsts, weights


@_compiled(void(_PIXELS, _AXIS, _AXIS, boolean, uint8[:, ::1]))
def resize_into(pixels, across, down, flip, out):  # type: ignore[no-untyped-def]
    """``out`` := both filters over ``pixels``, each ``(rows, columns * 3)``; ``flip`` turns left to right.

    ``across`` and ``down`` are what ``triangle_weights`` takes: start, extent, low and high.

    Row by row: first down, over whole rows of the crop, which the compiler makes wide vector instructions of, then
    across. Unsigned indices, as signed ones are first checked for being negative: across takes half the time with them.
    """
    zero, one, two, three = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3)
    columns = np.uint64(out.shape[1]) // three
    firsts_down, weights_down = triangle_weights(down[0], down[1], down[2], down[3], out.shape[0])
    firsts, weights = triangle_weights(across[0], across[1], across[2], across[3], out.shape[1] // 3)
    taps = np.uint64(weights.shape[1])
    left = firsts[0]
    right = min(across[3], firsts[-1] + weights.shape[1])
    length = np.uint64(3 * (right - left))
    row = np.zeros(length + three * taps + one, np.float32)  # behind the crop zeros, for weights that are zero
    filtered = np.empty(out.shape[1] + 1, np.float32)
    for output in range(out.shape[0]):
        for i in range(length):
            row[i] = np.float32(0.5)  # for rounding: weights add up to one
        for tap in range(0, weights_down.shape[1], 2):
            first, second = weights_down[output, tap], weights_down[output, tap + 1]
            if second != 0:
                upper = pixels[firsts_down[output] + tap, 3 * left : 3 * right]
                lower = pixels[firsts_down[output] + tap + 1, 3 * left : 3 * right]
                for i in range(length):
                    row[i] += first * np.float32(np.int32(upper[i])) + second * np.float32(np.int32(lower[i]))
            elif first != 0:
                upper = pixels[firsts_down[output] + tap, 3 * left : 3 * right]
                for i in range(length):
                    row[i] += first * np.float32(np.int32(upper[i]))
        for column in range(columns):
            source = columns - one - column if flip else column
            place = np.uint64(firsts[source] - left) * three
            colours = no_four()  # red, green, blue, and the next pixel's red, which is overwritten
            for tap in range(zero, taps, two):
                colours = with_weighted(colours, weights[source, tap], load_four(row, place))
                colours = with_weighted(colours, weights[source, tap + one], load_four(row, place + three))
                place += three + three
            store_four(filtered, column * three, colours)
        finished = out[output]
        for i in range(np.uint64(out.shape[1])):
            finished[i] = np.uint8(np.int32(filtered[i]))
