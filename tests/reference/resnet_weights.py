"""Weights, images and labels made from names and numbers alone: the same for torchvision's networks and for ours."""

from __future__ import annotations

import zlib

import numpy as np

CLASSES = 10
#: Seed and size of the images for each depth. Where a ReLU's argument is within rounding of 0, float32 decides by
#: chance whether a gradient passes, and that alone can change norms by 1e-3: for many seeds PyTorch's float32 is as far
#: from its own float64. With these no such argument weighs much.
CASES = {18: (1, 75, 53), 34: (1, 75, 53), 50: (2, 45, 37), 101: (2, 45, 37)}
LABELS = np.array([3, 0, 9, 3])
#: Of which entries of each gradient and statistic the numbers are kept, as parts of its length in torch's order.
PLACES = (0.0, 0.31, 0.62, 1.0)


def images(seed: int, height: int, width: int) -> np.ndarray:
    """uint8, channels last: coarse patterns with noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.random((len(LABELS), height // 6 + 1, width // 6 + 1, 3)).repeat(6, axis=1).repeat(6, axis=2)
    fine = rng.random((len(LABELS), height, width, 3))
    return ((0.7 * coarse[:, :height, :width] + 0.3 * fine) * 255).astype("uint8")


def value(name: str, shape: tuple[int, ...], depth: int) -> np.ndarray:
    """The float32 value of torchvision's parameter of that name, in torch's order of axes.

    Scales are such that 101 layers neither blow up nor fade away, with the batch's statistics and with these.
    """
    uniform = np.random.default_rng(zlib.crc32(name.encode())).random(shape)
    centred = (uniform - 0.5) * np.sqrt(12)
    layer, _, part = name.rpartition(".")
    last = "bn2" if depth < 50 else "bn3"
    if len(shape) == 4:
        result = centred * np.sqrt(2 / (shape[1] * shape[2] * shape[3]))
    elif len(shape) == 2:
        result = centred / np.sqrt(shape[1])
    elif part == "running_var":
        result = 0.5 + uniform
    elif part == "weight":
        # A block's last normalisation, after which its shortcut is added: small, as in networks that were trained.
        result = (0.5 + uniform) * (0.1 if layer.endswith(last) else 1.0)
    else:
        result = centred * 0.1
    return result.astype("float32")


def entries(array: np.ndarray) -> np.ndarray:
    """A few entries of an array that has torch's order of axes."""
    flat = array.reshape(-1)
    return flat[[int(place * (flat.size - 1)) for place in PLACES]]
