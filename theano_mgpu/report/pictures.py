"""Pictures inside a page: arrays as data URIs."""

from __future__ import annotations

import base64
import io

import numpy as np
from PIL import Image

__all__ = ["filter_grid", "image_uri", "svg_uri"]

_LARGEST = 224  # pixels of the longer side: two per pixel of a tile on a phone
_SMALLEST = 64  # below, every pixel counts


def image_uri(image: np.ndarray) -> str:
    """An image, uint8 (height, width, 3), as a data URI: WebP of at most 224 pixels; a small one as it is, as PNG."""
    picture = Image.fromarray(image)
    if max(picture.size) <= _SMALLEST:
        return _uri(picture, "png")
    picture.thumbnail((_LARGEST, _LARGEST), Image.Resampling.LANCZOS)
    return _uri(picture, "webp", quality=85, method=6)


def filter_grid(filters: np.ndarray, columns: int = 16) -> tuple[str, int, int]:
    """Filters, float (height, width, 1 or 3, count), as a PNG's data URI, and its size: a pixel a weight, a gap of one.

    Each filter is scaled by its own largest weight: zero is grey.
    """
    height, width, _, count = filters.shape
    largest = np.abs(filters).max(axis=(0, 1, 2), keepdims=True)
    scaled = 127.5 + 127.5 * filters / np.where(largest > 0, largest, 1)
    tiles = np.repeat(np.round(scaled).astype("uint8"), 3 // filters.shape[2], axis=2)
    columns = min(columns, count)
    rows = -(-count // columns)
    grid = np.zeros((rows * (height + 1) - 1, columns * (width + 1) - 1, 4), "uint8")  # transparent
    for number in range(count):
        row, column = divmod(number, columns)
        place = grid[row * (height + 1) :, column * (width + 1) :][:height, :width]
        place[..., :3], place[..., 3] = tiles[..., number], 255
    return _uri(Image.fromarray(grid, "RGBA"), "png"), grid.shape[1], grid.shape[0]


def svg_uri(svg: str) -> str:
    """A drawing as a data URI: inside an image its styles do not leave it, and no script of it runs."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _uri(picture: Image.Image, form: str, **options: int) -> str:
    buffer = io.BytesIO()
    picture.save(buffer, form, **options)
    return f"data:image/{form};base64,{base64.b64encode(buffer.getvalue()).decode()}"
