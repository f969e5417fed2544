"""Where the windows of a convolution or of a pool lie: the arithmetic of size, stride, dilation and padding."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np

__all__ = ["Padding", "Pair", "Windows", "check_image", "lay_windows", "output_length", "padding_pairs", "pair"]

Pair = tuple[int, int]
#: What is added (top, bottom) and (left, right); or "same", which depends on the image.
Padding = str | tuple[Pair, Pair]


def pair(function: str, argument: str, value: Any, minimum: int = 1) -> Pair:
    """An int for both axes, or (vertical, horizontal). Raises ValueError naming function and argument."""
    numbers = value if isinstance(value, (tuple, list)) else (value, value)
    if len(numbers) == 2 and all(isinstance(n, (int, np.integer)) and n >= minimum for n in numbers):
        return int(numbers[0]), int(numbers[1])
    raise ValueError(
        f"{function}(): {argument} is an int of at least {minimum}, or a pair of them (vertical, horizontal); "
        f"it came as {value!r}."
    )


def padding_pairs(function: str, padding: Any) -> Padding:
    """``padding`` in one form: "same", or ((top, bottom), (left, right))."""
    if isinstance(padding, str):
        if padding not in ("same", "valid"):
            raise ValueError(
                f'{function}(): padding is "same", "valid", an int, a pair or ((top, bottom), (left, right)); '
                f"it came as {padding!r}."
            )
        return padding if padding == "same" else ((0, 0), (0, 0))
    if isinstance(padding, (tuple, list)) and any(isinstance(side, (tuple, list)) for side in padding):
        if len(padding) != 2:
            raise ValueError(f"{function}(): padding is ((top, bottom), (left, right)); it came as {padding!r}.")
        return pair(function, "padding", padding[0], 0), pair(function, "padding", padding[1], 0)
    vertical, horizontal = pair(function, "padding", padding, 0)
    return (vertical, vertical), (horizontal, horizontal)


def output_length(length: Any, size: Any, stride: int, dilation: int, padding: str | Pair) -> Any:
    """How many windows fit along one axis; ``length`` and ``size`` may be symbolic."""
    if isinstance(padding, str):
        return (length + stride - 1) // stride
    return (length + sum(padding) - (size - 1) * dilation - 1) // stride + 1


@dataclass(frozen=True)
class Windows:
    """The windows over one image: ``output`` many, reading an image to which ``padding`` was added."""

    image: Pair
    size: Pair
    stride: Pair
    dilation: Pair
    padding: tuple[Pair, Pair]
    output: Pair

    @property
    def padded(self) -> Pair:
        return self.image[0] + sum(self.padding[0]), self.image[1] + sum(self.padding[1])

    @property
    def pad_width(self) -> tuple[Pair, Pair, Pair, Pair]:
        """The padding of a whole (examples, height, width, channels) array, as ``numpy.pad`` takes it."""
        return (0, 0), *self.padding, (0, 0)

    def starts(self) -> Iterator[Pair]:
        """For each position inside a window, row by row: where in the padded image the first window has it."""
        for row in range(self.size[0]):
            for column in range(self.size[1]):
                yield row * self.dilation[0], column * self.dilation[1]

    def spans(self) -> Pair:
        """The distance along each axis between the first and the last window, plus one."""
        return (self.output[0] - 1) * self.stride[0] + 1, (self.output[1] - 1) * self.stride[1] + 1

    def slices(self) -> Iterator[tuple[slice, slice, slice]]:
        """For each position inside a window, row by row: what all windows have there, of a padded NHW... array."""
        height, width = self.spans()
        for top, left in self.starts():
            yield (
                slice(None),
                slice(top, top + height, self.stride[0]),
                slice(left, left + width, self.stride[1]),
            )

    def interior(self, array: np.ndarray) -> np.ndarray:
        """A padded array without its padding."""
        (top, _), (left, _) = self.padding
        return array[:, top : top + self.image[0], left : left + self.image[1]]


def lay_windows(function: str, image: Pair, size: Pair, stride: Pair, dilation: Pair, padding: Padding) -> Windows:
    """The windows of ``size`` over ``image``. Raises ValueError, with the sizes, where not one fits."""
    output = []
    pads: list[Pair] = []
    for axis in range(2):
        side = padding if isinstance(padding, str) else padding[axis]
        count = output_length(image[axis], size[axis], stride[axis], dilation[axis], side)
        if isinstance(side, str):
            # TensorFlow's and lax's meaning: the odd one of an uneven padding goes to the bottom and the right.
            missing = max(0, (count - 1) * stride[axis] + (size[axis] - 1) * dilation[axis] + 1 - image[axis])
            side = (missing // 2, missing - missing // 2)
        output.append(count)
        pads.append(side)
    if min(*output, *image, *size) < 1:
        raise ValueError(
            f"{function}(): no window of size {size} with dilation {dilation} fits in an image of "
            f"(height, width) {image} with padding {tuple(pads)}. Give larger images, smaller windows or more padding."
        )
    return Windows(image, size, stride, dilation, (pads[0], pads[1]), (output[0], output[1]))


def check_image(function: str, x: Any) -> None:
    """Raise unless ``x`` is a float variable with the axes (examples, height, width, channels)."""
    if x.type.ndim != 4:
        raise ValueError(
            f"{function}(): x has {x.type.ndim} axes, shape {x.type.shape}; expected 4: "
            "(examples, height, width, channels)."
        )
    if not x.type.dtype.startswith("float"):
        raise TypeError(
            f'{function}(): x has dtype {x.type.dtype}; expected a float. Convert it with x.astype("float32").'
        )
