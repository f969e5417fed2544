"""Crop, antialiased bilinear resize and flip in one go, without a copy between."""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import numpy as np

__all__ = ["Box", "resized_crop"]

_NEAR = 1e-6  # pixels; a box that was scaled may end that far beside the edge


class Box(NamedTuple):
    """Part of an image, in pixels, whole or not."""

    left: float
    top: float
    width: float
    height: float

    def scaled(self, across: float, down: float) -> Box:
        return Box(self.left * across, self.top * down, self.width * across, self.height * down)


def resized_crop(
    pixels: np.ndarray,
    box: Box,
    size: int,
    *,
    flip: bool = False,
    within: Literal["box", "image"] = "box",
    out: np.ndarray | None = None,
) -> np.ndarray:
    """A box of an image as a square, uint8 ``(size, size, 3)``; ``flip`` turns left to right.

    Bilinear and antialiased: each output is the mean of the inputs under a triangle, two outputs wide where the image
    shrinks, two inputs where it grows; the same as Pillow's BILINEAR and torchvision's ``antialias=True``, except that
    Pillow rounds to whole numbers between its two passes: results differ by one of 255 at most.

    pixels: uint8 ``(height, width, 3)``.
    within: "box" filters what lies in the box alone (an image that is cropped and then resized); "image" also what lies
        around it (an image that is resized and then cropped).
    out: where the result is written, C-contiguous.

    Raises ValueError for a box outside the image, or pixels of another form.
    """
    from theano_mgpu.data.resize_kernel import resize_into

    if pixels.dtype != np.uint8 or pixels.ndim != 3 or pixels.shape[2] != 3:
        raise ValueError(
            f"resized_crop(): 'pixels' should be uint8 (height, width, 3), not {pixels.dtype} {pixels.shape}."
        )
    height, width = pixels.shape[:2]
    box = Box(*map(float, box))
    if min(box.width, box.height) <= 0 or not (
        -_NEAR <= box.left <= box.left + box.width <= width + _NEAR
        and -_NEAR <= box.top <= box.top + box.height <= height + _NEAR
    ):
        raise ValueError(f"resized_crop(): {box} is not within an image of {width} x {height} pixels.")
    out = np.empty((size, size, 3), np.uint8) if out is None else out
    rows = np.ascontiguousarray(pixels).reshape(height, -1)
    across = box.left, box.width, *_bounds(box.left, box.width, width, within)
    down = box.top, box.height, *_bounds(box.top, box.height, height, within)
    resize_into(rows, across, down, bool(flip), out.reshape(size, -1))
    return out


def _bounds(start: float, extent: float, pixels: int, within: Literal["box", "image"]) -> tuple[int, int]:
    """Along one axis: the first pixel that counts, and the one behind the last."""
    if within == "image":
        return 0, pixels
    return max(math.floor(start + _NEAR), 0), min(math.ceil(start + extent - _NEAR), pixels)
