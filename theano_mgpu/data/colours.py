"""Random changes to a finished image, uint8 ``(size, size, 3)``: jitter, RandAugment, TrivialAugment, erasing."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from theano_mgpu.data.augmentation import ColourJitter, Interpolation, RandAugment, RandomErasing, TrivialAugment

__all__ = [
    "MODERATE",
    "OPERATIONS",
    "WIDE",
    "Amount",
    "Strengths",
    "erase",
    "jitter",
    "rand_augment",
    "trivial_augment",
    "turn_hue",
]

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
        operation = _drawn_operation(rng)
        image = operation(image, Amount(_drawn_sign(rng) * strength, MODERATE, settings.interpolation))
    return np.asarray(image)


def trivial_augment(rng: np.random.Generator, pixels: np.ndarray, settings: TrivialAugment) -> np.ndarray:
    """A new array. The draws are the same in number for every operation."""
    operation = _drawn_operation(rng)
    strength = rng.integers(settings.bins) / (settings.bins - 1)
    amount = Amount(_drawn_sign(rng) * strength, WIDE, settings.interpolation)
    return np.asarray(operation(Image.fromarray(pixels), amount))


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


@dataclass(frozen=True)
class Strengths:
    """What each operation does at its full strength, in its own unit; the weakest does nothing."""

    shear: float  # pixels a row or column
    pixels: float  # translation
    of_side: float  # translation, as a part of the image's side
    degrees: float
    enhance: float  # a factor's distance from 1
    bits: int  # taken off by posterize


#: RandAugment's space, and TrivialAugment's wide one.
MODERATE = Strengths(shear=0.3, pixels=0, of_side=150 / 331, degrees=30, enhance=0.9, bits=4)
WIDE = Strengths(shear=0.99, pixels=32, of_side=0, degrees=135, enhance=0.99, bits=6)


@dataclass(frozen=True)
class Amount:
    """``part`` of the full strengths, from -1 to 1; its sign counts for operations that can go both ways."""

    part: float
    strengths: Strengths
    interpolation: Interpolation = "nearest"

    @property
    def size(self) -> float:
        return abs(self.part)

    @property
    def shear(self) -> float:
        return self.part * self.strengths.shear

    def translation(self, side: int) -> int:
        """Whole pixels, rounded towards 0, but 54.99999999 are 55."""
        return int(round(self.part * (self.strengths.pixels + self.strengths.of_side * side), 6))


Operation = Callable[[Image.Image, Amount], Image.Image]


def _drawn_operation(rng: np.random.Generator) -> Operation:
    return OPERATIONS[tuple(OPERATIONS)[rng.integers(len(OPERATIONS))]]


def _drawn_sign(rng: np.random.Generator) -> int:
    return 1 if rng.random() < 0.5 else -1


def _enhanced(name: str) -> Operation:
    return lambda image, by: _ENHANCE[name](image).enhance(1 + by.part * by.strengths.enhance)


def _moved(image: Image.Image, by: Amount, *matrix: float) -> Image.Image:
    """Black outside. (a, b, c, d, e, f): output (x, y) shows input (ax + by + c, dx + ey + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, _RESAMPLING[by.interpolation])


def _rotated(image: Image.Image, by: Amount) -> Image.Image:
    return image.rotate(by.part * by.strengths.degrees, _RESAMPLING[by.interpolation])


def _solarized(image: Image.Image, by: Amount) -> Image.Image:
    """Inverted from a threshold on: from 255 at the least, from 0, which is all, at the most."""
    threshold = round(255 * (1 - by.size), 6)  # 170, not 170.00000000000003, which would leave 170 as it is
    return ImageOps.solarize(image, math.ceil(threshold))


_RESAMPLING = {"nearest": Image.Resampling.NEAREST, "bilinear": Image.Resampling.BILINEAR}

OPERATIONS: dict[str, Operation] = {
    "identity": lambda image, by: image,
    "shear_x": lambda image, by: _moved(image, by, 1, by.shear, 0, 0, 1, 0),
    "shear_y": lambda image, by: _moved(image, by, 1, 0, 0, by.shear, 1, 0),
    "translate_x": lambda image, by: _moved(image, by, 1, 0, by.translation(image.width), 0, 1, 0),
    "translate_y": lambda image, by: _moved(image, by, 1, 0, 0, 0, 1, by.translation(image.height)),
    "rotate": _rotated,
    "brightness": _enhanced("brightness"),
    "colour": _enhanced("saturation"),
    "contrast": _enhanced("contrast"),
    "sharpness": _enhanced("sharpness"),
    "posterize": lambda image, by: ImageOps.posterize(image, 8 - round(by.strengths.bits * by.size)),
    "solarize": _solarized,
    "autocontrast": lambda image, by: ImageOps.autocontrast(image),
    "equalize": lambda image, by: ImageOps.equalize(image),
}
