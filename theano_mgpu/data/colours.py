"""Random changes to a finished image, ``(size, size, 3)`` uint8: colour jitter, RandAugment, erasing."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from theano_mgpu.data.augmentation import ColourJitter, RandAugment, RandomErasing

__all__ = ["OPERATIONS", "erase", "jitter", "rand_augment", "turn_hue"]

_TRIES = 10


def jitter(rng: np.random.Generator, pixels: np.ndarray, settings: ColourJitter) -> np.ndarray:
    """A new array. The draws are the same in number whatever the settings are."""
    names = rng.permutation(["brightness", "contrast", "saturation", "hue"])
    draws = dict(zip(("brightness", "contrast", "saturation", "hue"), rng.random(4), strict=True))
    image = Image.fromarray(pixels)
    for name in names:
        value = getattr(settings, name)
        if name == "hue":
            image = turn_hue(image, value * (2 * draws[name] - 1)) if value else image
        elif value:
            low, high = max(0.0, 1 - value), 1 + value
            image = _ENHANCE[name](image).enhance(low + (high - low) * draws[name])
    return np.asarray(image)


def turn_hue(image: Image.Image, turns: float) -> Image.Image:
    """Hue moved along the colour circle, in steps of 1/256 turn, as in torchvision's ``adjust_hue`` for Pillow."""
    hue, saturation, value = image.convert("HSV").split()
    moved = (np.asarray(hue).astype(np.int32) + int(turns * 255)) % 256
    return Image.merge("HSV", (Image.fromarray(moved.astype(np.uint8)), saturation, value)).convert("RGB")


def rand_augment(rng: np.random.Generator, pixels: np.ndarray, settings: RandAugment) -> np.ndarray:
    """A new array."""
    image = Image.fromarray(pixels)
    strength = settings.magnitude / (settings.bins - 1)
    for _ in range(settings.operations):
        name = tuple(OPERATIONS)[rng.integers(len(OPERATIONS))]
        sign = 1 if rng.random() < 0.5 else -1
        image = OPERATIONS[name](image, strength, sign)
    return np.asarray(image)


def erase(rng: np.random.Generator, pixels: np.ndarray, settings: RandomErasing) -> None:
    """In place. Nothing is erased where ten rectangles did not fit."""
    if rng.random() >= settings.probability:
        return
    height, width = pixels.shape[:2]
    for _ in range(_TRIES):
        target = height * width * rng.uniform(*settings.area)
        aspect = math.exp(rng.uniform(math.log(settings.ratio[0]), math.log(settings.ratio[1])))
        down, across = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if down < height and across < width:
            top, left = rng.integers(0, (height - down + 1, width - across + 1))
            region = pixels[top : top + down, left : left + across]
            noise = settings.fill == "noise"
            region[:] = rng.integers(0, 256, region.shape, np.uint8) if noise else settings.fill
            return


_ENHANCE: dict[str, Callable[[Image.Image], Any]] = {
    "brightness": ImageEnhance.Brightness,
    "contrast": ImageEnhance.Contrast,
    "saturation": ImageEnhance.Color,
    "sharpness": ImageEnhance.Sharpness,
}

Operation = Callable[[Image.Image, float, int], Image.Image]


def _enhanced(name: str) -> Operation:
    return lambda image, strength, sign: _ENHANCE[name](image).enhance(1 + sign * 0.9 * strength)


def _moved(image: Image.Image, *matrix: float) -> Image.Image:
    """Nearest neighbour, black outside. (a, b, c, d, e, f): output (x, y) shows input (ax + by + c, dx + ey + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST)


# The strength goes from 0 to 1; the sign counts for those that can go both ways.
OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, strength, sign: image,
    "shear_x": lambda image, strength, sign: _moved(image, 1, sign * 0.3 * strength, 0, 0, 1, 0),
    "shear_y": lambda image, strength, sign: _moved(image, 1, 0, 0, sign * 0.3 * strength, 1, 0),
    "translate_x": lambda image, strength, sign: _moved(
        image, 1, 0, sign * int(150 / 331 * image.width * strength), 0, 1, 0
    ),
    "translate_y": lambda image, strength, sign: _moved(
        image, 1, 0, 0, 0, 1, sign * int(150 / 331 * image.height * strength)
    ),
    "rotate": lambda image, strength, sign: image.rotate(sign * 30 * strength, Image.Resampling.NEAREST),
    "brightness": _enhanced("brightness"),
    "colour": _enhanced("saturation"),
    "contrast": _enhanced("contrast"),
    "sharpness": _enhanced("sharpness"),
    "posterize": lambda image, strength, sign: ImageOps.posterize(image, 8 - round(4 * strength)),
    "solarize": lambda image, strength, sign: ImageOps.solarize(image, math.ceil(255 * (1 - strength))),
    "autocontrast": lambda image, strength, sign: ImageOps.autocontrast(image),
    "equalize": lambda image, strength, sign: ImageOps.equalize(image),
}
