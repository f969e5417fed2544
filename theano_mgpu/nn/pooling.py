"""Pooling of images: the largest or the mean of each window."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from theano_mgpu.compatibility import OpWithShapes
from theano_mgpu.nn.windows import Padding, Pair, Windows, check_image, lay_windows, output_length, padding_pairs, pair

__all__ = [
    "AveragePool2d",
    "AveragePool2dGradient",
    "MaxPool2d",
    "MaxPool2dGradient",
    "MaxPool2dPick",
    "avg_pool2d",
    "global_avg_pool2d",
    "max_pool2d",
]


class Pool(OpWithShapes):
    """What the pools and their gradients share: settings and geometry."""

    __props__ = ("size", "stride", "padding")
    #: The public function, for messages.
    function: str

    def __init__(self, size: Pair, stride: Pair, padding: Padding) -> None:
        self.size = size
        self.stride = stride
        self.padding = padding

    @property
    def settings(self) -> tuple[Pair, Pair, Padding]:
        return self.size, self.stride, self.padding

    def windows(self, shape: Sequence[int]) -> Windows:
        return lay_windows(self.function, (shape[1], shape[2]), self.size, self.stride, (1, 1), self.padding)

    def _pooled(self, shape: Sequence[Any]) -> tuple[Any, ...]:
        """The shape after pooling; lengths may be symbolic or, if static, unknown."""
        pads: Sequence[Any] = (self.padding,) * 2 if isinstance(self.padding, str) else self.padding
        lengths = [
            None if length is None else output_length(length, size, stride, 1, pad)
            for length, size, stride, pad in zip(shape[1:3], self.size, self.stride, pads, strict=True)
        ]
        return shape[0], *lengths, shape[3]


class PoolForward(Pool):
    """Images (examples, height, width, channels) to smaller images."""

    def make_node(self, x: Any) -> Apply:
        x = pt.as_tensor_variable(x)
        check_image(self.function, x)
        if None not in x.type.shape[1:3]:
            self.windows(x.type.shape)
        return Apply(self, [x], [TensorType(x.type.dtype, shape=self._pooled(x.type.shape))()])

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        return [self._pooled(input_shapes[0])]


class MaxPool2d(PoolForward):
    """The largest of each window; NaN where a window holds one."""

    function = "max_pool2d"

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[Any]]) -> None:
        (x,) = inputs
        windows = self.windows(x.shape)
        padded = np.pad(x, windows.pad_width, constant_values=-np.inf)
        output_storage[0][0] = np.maximum.reduce([padded[where] for where in windows.slices()])

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        (g,) = cotangents
        if isinstance(g.type, DisconnectedType):
            return [g]
        return [MaxPool2dGradient(*self.settings)(*inputs, *outputs, g)]


class MaxPool2dRoute(Pool):
    """Images, their pool, and an array that goes along the way from a window's first largest entry to its pool."""

    function = "max_pool2d"
    #: Which of the first two inputs the result is shaped as.
    like: int

    def make_node(self, x: Any, y: Any, routed: Any) -> Apply:
        inputs = [pt.as_tensor_variable(variable) for variable in (x, y, routed)]
        for variable in inputs:
            check_image(type(self).__name__, variable)
        return Apply(self, inputs, [inputs[self.like].type()])

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        return [input_shapes[self.like]]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        # Which entry is the largest does not change with an infinitesimal step.
        return [[False], [False], [True]]

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        x, y, _ = inputs
        (u,) = cotangents
        if isinstance(u.type, DisconnectedType):
            return [u, u, u]
        back = MaxPool2dPick if self.like == 0 else MaxPool2dGradient
        return [DisconnectedType()(), DisconnectedType()(), back(*self.settings)(x, y, u)]

    def _hits(self, x: np.ndarray, y: np.ndarray, windows: Windows) -> Iterator[tuple[Any, np.ndarray]]:
        """For each position inside a window: where it lies, and of which windows it is the first largest."""
        # NaN equals nothing, so the padding is never the largest, even of a window of -inf.
        padded = np.pad(x, windows.pad_width, constant_values=np.nan)
        undecided = np.ones(y.shape, bool)
        for where in windows.slices():
            hit = undecided & (padded[where] == y)
            undecided &= ~hit
            yield where, hit


class MaxPool2dGradient(MaxPool2dRoute):
    """Sends a window's cotangent to its first largest entry, row by row; that of a window with NaN to none."""

    like = 0

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[Any]]) -> None:
        x, y, g = inputs
        windows = self.windows(x.shape)
        accumulator = np.float32 if x.dtype == np.float16 else x.dtype
        gradient = np.zeros((x.shape[0], *windows.padded, x.shape[3]), accumulator)
        for where, hit in self._hits(x, y, windows):
            gradient[where] += np.where(hit, g, 0)
        output_storage[0][0] = np.ascontiguousarray(windows.interior(gradient), dtype=x.dtype)


class MaxPool2dPick(MaxPool2dRoute):
    """Reads, of other images, the entry where x has a window's first largest: the gradient's transpose."""

    like = 1

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[Any]]) -> None:
        x, y, u = inputs
        windows = self.windows(x.shape)
        padded = np.pad(u, windows.pad_width)
        picked = np.zeros(y.shape, u.dtype)
        for where, hit in self._hits(x, y, windows):
            picked = np.where(hit, padded[where], picked)
        output_storage[0][0] = picked


class AveragePool2d(PoolForward):
    """The mean of each window, zeros of the padding counted."""

    function = "avg_pool2d"

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[Any]]) -> None:
        (x,) = inputs
        windows = self.windows(x.shape)
        padded = np.pad(x, windows.pad_width)
        accumulator = np.float32 if x.dtype == np.float16 else x.dtype
        total = np.zeros((x.shape[0], *windows.output, x.shape[3]), accumulator)
        for where in windows.slices():
            total += padded[where]
        output_storage[0][0] = (total / (self.size[0] * self.size[1])).astype(x.dtype)

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        (g,) = cotangents
        if isinstance(g.type, DisconnectedType):
            return [g]
        return [AveragePool2dGradient(*self.settings)(*inputs, g)]


class AveragePool2dGradient(Pool):
    """Spreads the cotangent evenly over each window. Of the images only the shape is read."""

    function = "avg_pool2d"

    def make_node(self, x: Any, g: Any) -> Apply:
        x, g = pt.as_tensor_variable(x), pt.as_tensor_variable(g)
        for variable in (x, g):
            check_image(type(self).__name__, variable)
        return Apply(self, [x, g], [x.type()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[Any]]) -> None:
        x, g = inputs
        windows = self.windows(x.shape)
        accumulator = np.float32 if x.dtype == np.float16 else x.dtype
        gradient = np.zeros((x.shape[0], *windows.padded, x.shape[3]), accumulator)
        share = g.astype(accumulator) / (self.size[0] * self.size[1])
        for where in windows.slices():
            gradient[where] += share
        output_storage[0][0] = np.ascontiguousarray(windows.interior(gradient), dtype=x.dtype)

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        return [input_shapes[0]]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[False], [True]]

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        (u,) = cotangents
        if isinstance(u.type, DisconnectedType):
            return [u, u]
        return [DisconnectedType()(), AveragePool2d(*self.settings)(u)]


def max_pool2d(x: Any, size: Any, stride: Any = None, padding: Any = 0) -> TensorVariable:
    """The largest entry of each window, channels last.

    Parameters:
        x: images (examples, height, width, channels), float16, float32 or float64.
        size: of a window, an int or (vertical, horizontal).
        stride: an int or a pair; the size where it is not given.
        padding: an int, a pair, ((top, bottom), (left, right)), "valid" or "same" as in ``conv2d``; smaller than the
            window. Padding is never the largest.

    Returns images (examples, output height, output width, channels). A window with NaN gives NaN. The gradient goes to
    the first of equal largest entries, row by row, as in PyTorch.
    Raises TypeError for integers, ValueError for settings or shapes that do not fit.
    """
    return MaxPool2d(*_settings("max_pool2d", size, stride, padding))(x)


def avg_pool2d(
    x: Any, size: Any, stride: Any = None, padding: Any = 0, count_include_pad: bool = True
) -> TensorVariable:
    """The mean of each window, channels last.

    Parameters and errors as in ``max_pool2d``. With ``count_include_pad`` the padding's zeros count as entries of their
    windows, as by default in PyTorch; without it a window's mean is over what lies inside the image.

    Returns images (examples, output height, output width, channels).
    """
    op = AveragePool2d(*_settings("avg_pool2d", size, stride, padding))
    x = pt.as_tensor_variable(x)
    y = op(x)
    if count_include_pad:
        return y
    return y / op(pt.ones((1, x.shape[1], x.shape[2], 1), dtype=x.type.dtype))


def global_avg_pool2d(x: Any) -> TensorVariable:
    """The mean over height and width: images (examples, height, width, channels) to (examples, channels)."""
    x = pt.as_tensor_variable(x)
    check_image("global_avg_pool2d", x)
    return x.mean(axis=(1, 2))


def _settings(function: str, size: Any, stride: Any, padding: Any) -> tuple[Pair, Pair, Padding]:
    size = pair(function, "size", size)
    stride = size if stride is None else pair(function, "stride", stride)
    pads = padding_pairs(function, padding)
    if not isinstance(pads, str) and any(max(pads[axis]) >= size[axis] for axis in range(2)):
        raise ValueError(
            f"{function}(): padding {padding!r} is not smaller than the window {size}; some windows would lie wholly "
            "outside the image."
        )
    return size, stride, pads
