"""What is done to the images of a pipeline: frozen values that say it all, and can be written into a recipe."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

__all__ = ["Augmentation", "ColourJitter", "Interpolation", "RandAugment", "RandomErasing", "TrivialAugment"]

#: How shears, translations and rotations find a pixel's colour: the nearest one's, or the four nearest ones' mean.
Interpolation = Literal["nearest", "bilinear"]


@dataclass(frozen=True)
class ColourJitter:
    """Brightness, contrast, saturation and hue change by random factors, in random order.

    Each of the first three is multiplied by a number drawn from ``1 - value`` (at least 0) to ``1 + value``; hue moves
    by ``-hue`` to ``hue`` turns of the colour circle. As torchvision's ColorJitter.
    """

    brightness: float = 0.4
    contrast: float = 0.4
    saturation: float = 0.4
    hue: float = 0.0

    def __post_init__(self) -> None:
        for name in ("brightness", "contrast", "saturation"):
            _check_number(f"ColourJitter(): '{name}'", getattr(self, name), 0, math.inf)
        _check_number("ColourJitter(): 'hue'", self.hue, 0, 0.5)


@dataclass(frozen=True)
class RandAugment:
    """So many operations, drawn from fourteen, one behind the other, each at one strength.

    ``magnitude`` counts from 0 to ``bins - 1``. The operations and what a magnitude means for each are torchvision's.

    Cubuk et al., "RandAugment: practical automated data augmentation with a reduced search space", 2019.
    """

    operations: int = 2
    magnitude: int = 9
    bins: int = 31
    interpolation: Interpolation = "nearest"

    def __post_init__(self) -> None:
        _check_whole("RandAugment(): 'operations'", self.operations, 1)
        _check_whole("RandAugment(): 'bins'", self.bins, 2)
        _check_whole("RandAugment(): 'magnitude'", self.magnitude, 0, self.bins - 1)
        _check_interpolation("RandAugment()", self.interpolation)


@dataclass(frozen=True)
class TrivialAugment:
    """One of RandAugment's fourteen operations on each image, at a strength from 0 to ``bins - 1``: both are drawn.

    The strengths are those of the paper's wide space, table 6, as torchvision's TrivialAugmentWide has them: shears up
    to 0.99, translations to 32 pixels, rotations to 135 degrees, colours by factors from 0.01 to 1.99.

    Müller and Hutter, "TrivialAugment: tuning-free yet state-of-the-art data augmentation", ICCV 2021.
    """

    bins: int = 31
    interpolation: Interpolation = "nearest"

    def __post_init__(self) -> None:
        _check_whole("TrivialAugment(): 'bins'", self.bins, 2)
        _check_interpolation("TrivialAugment()", self.interpolation)


@dataclass(frozen=True)
class RandomErasing:
    """With some probability, a random rectangle of the finished image is filled.

    area: share of the image, drawn uniformly. ratio: of height to width, log-uniform. fill: red, green and blue, the
    mean over ImageNet by default, which is zero once normalised; or "noise", each value drawn.

    Zhong et al., "Random erasing data augmentation", AAAI 2020; drawn as torchvision's RandomErasing.
    """

    probability: float = 0.5
    area: tuple[float, float] = (0.02, 0.33)
    ratio: tuple[float, float] = (0.3, 3.3)
    fill: tuple[int, int, int] | Literal["noise"] = (124, 116, 104)

    def __post_init__(self) -> None:
        _check_number("RandomErasing(): 'probability'", self.probability, 0, 1)
        _check_range("RandomErasing(): 'area'", self.area, 0, 1)
        _check_range("RandomErasing(): 'ratio'", self.ratio, 0, math.inf, open_below=True)
        if self.fill != "noise" and not (
            isinstance(self.fill, tuple)
            and len(self.fill) == 3
            and all(_is_whole(v) and 0 <= v < 256 for v in self.fill)
        ):
            raise ValueError(
                f"RandomErasing(): 'fill' should be 'noise' or three integers from 0 to 255, not {self.fill!r}."
            )


@dataclass(frozen=True)
class Augmentation:
    """What a pipeline does to images. As it stands: random resized crops and flips for training.

    Training, in this order:

    area, ratio: a crop with this share of the image's area and this ratio of width to height, resized to a square.
    padding: instead of such a crop: the middle of the image at its size in the batch, so many black pixels around it,
        and of that a window of the image's size, drawn (He et al. 2016, section 4.2, for CIFAR: 4).
    flip: the probability of turning left to right.
    jitter, rand_augment or trivial_augment, erasing: see ColourJitter, RandAugment, TrivialAugment, RandomErasing.

    Validation, nothing of which is random:

    resize: the pixels of the shorter side, of which the middle is cut; by default 256 / 224 of the image size.

    Raises ValueError, naming the argument.
    """

    area: tuple[float, float] = (0.08, 1.0)
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    padding: int | None = None
    flip: float = 0.5
    jitter: ColourJitter | None = None
    rand_augment: RandAugment | None = None
    trivial_augment: TrivialAugment | None = None
    erasing: RandomErasing | None = None
    resize: int | None = None

    def __post_init__(self) -> None:
        _check_range("Augmentation(): 'area'", self.area, 0, 1, open_below=True)
        _check_range("Augmentation(): 'ratio'", self.ratio, 0, math.inf, open_below=True)
        _check_number("Augmentation(): 'flip'", self.flip, 0, 1)
        if self.padding is not None:
            _check_whole("Augmentation(): 'padding'", self.padding, 0)
        if self.resize is not None:
            _check_whole("Augmentation(): 'resize'", self.resize, 1)
        for name, kind in _KINDS.items():
            value = getattr(self, name)
            if value is not None and not isinstance(value, kind):
                raise ValueError(f"Augmentation(): '{name}' should be tm.data.{kind.__name__}(...), not {value!r}.")
        if self.rand_augment is not None and self.trivial_augment is not None:
            raise ValueError("Augmentation(): 'rand_augment' and 'trivial_augment' are both given; use one of them.")

    def resize_for(self, size: int) -> int:
        """The shorter side for validation at ``size`` pixels. Raises ValueError where ``resize`` is less than that."""
        if self.resize is not None and self.resize < size:
            raise ValueError(
                f"Augmentation(): 'resize' is {self.resize}, less than the image size, {size}, that is cut from it."
            )
        return self.resize or round(size * 256 / 224)


_KINDS: dict[str, type] = {
    "jitter": ColourJitter,
    "rand_augment": RandAugment,
    "trivial_augment": TrivialAugment,
    "erasing": RandomErasing,
}


def _is_whole(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and value == value


def _check_whole(name: str, value: object, low: int, high: float = math.inf) -> None:
    if not (_is_whole(value) and low <= value <= high):  # type: ignore[operator]
        upto = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name} should be an integer of at least {low}{upto}, not {value!r}.")


def _check_interpolation(name: str, value: object) -> None:
    if value not in ("nearest", "bilinear"):
        raise ValueError(f"{name}: 'interpolation' should be 'nearest' or 'bilinear', not {value!r}.")


def _check_number(name: str, value: object, low: float, high: float) -> None:
    if not (_is_number(value) and low <= value <= high and value < math.inf):  # type: ignore[operator]
        upto = "" if high == math.inf else f" and at most {high}"
        raise ValueError(f"{name} should be a number of at least {low}{upto}, not {value!r}.")


def _check_range(name: str, value: object, low: float, high: float, *, open_below: bool = False) -> None:
    pair = isinstance(value, tuple) and len(value) == 2 and all(map(_is_number, value))
    if not pair or not (low <= value[0] <= value[1] <= high) or (open_below and value[0] == low):  # type: ignore[index]
        upto = "" if high == math.inf else f", at most {high}"
        more = "above" if open_below else "from"
        raise ValueError(f"{name} should be two numbers, the smaller first, {more} {low}{upto}, not {value!r}.")
