"""Convolution of images: the op, and the two gradients that are again convolutions of its other arguments.

All three are bilinear. With ``<a, b>`` the sum of products, ``<convolve(x, w), g>`` is linear in each of x, w and g,
and the three ops are its derivatives; so each op's pullback is written with the other two, to any order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.gradient import DisconnectedType
from pytensor.graph.basic import Apply
from pytensor.tensor.type import TensorType
from pytensor.tensor.variable import TensorVariable

from theano_mgpu.compatibility import OpWithShapes
from theano_mgpu.nn.windows import (
    Padding,
    Pair,
    Windows,
    check_image,
    lay_windows,
    output_length,
    padding_pairs,
    pair,
)

__all__ = ["Conv2d", "Conv2dFilterGradient", "Conv2dInputGradient", "conv2d"]


class Convolution(OpWithShapes):
    """What the three ops share: settings, checks and the geometry."""

    __props__ = ("stride", "dilation", "padding", "groups")

    def __init__(self, stride: Pair, dilation: Pair, padding: Padding, groups: int) -> None:
        self.stride = stride
        self.dilation = dilation
        self.padding = padding
        self.groups = groups

    @property
    def settings(self) -> tuple[Pair, Pair, Padding, int]:
        return self.stride, self.dilation, self.padding, self.groups

    def windows(self, x_shape: Sequence[int], w_shape: Sequence[int]) -> Windows:
        """The geometry for images and filters of these shapes, after checking that they fit each other."""
        self._check_channels(x_shape, w_shape)
        image, size = (x_shape[1], x_shape[2]), (w_shape[0], w_shape[1])
        return lay_windows("conv2d", image, size, self.stride, self.dilation, self.padding)

    def _check_channels(self, x_shape: Sequence[Any], w_shape: Sequence[Any]) -> None:
        channels, filter_channels, filters = x_shape[3], w_shape[2], w_shape[3]
        shapes = f"x has shape {tuple(x_shape)}, w has shape {tuple(w_shape)}, groups={self.groups}"
        if None not in (channels, filter_channels) and filter_channels * self.groups != channels:
            raise ValueError(
                f"conv2d(): the filters' axis 2 is the images' channels divided by groups, but {shapes}. "
                "Images are (examples, height, width, channels), filters (height, width, channels / groups, filters)."
            )
        if filters is not None and filters % self.groups:
            raise ValueError(f"conv2d(): the number of filters is a multiple of groups, but {shapes}.")

    def _check_variables(self, x: Any, w: Any) -> None:
        check_image("conv2d", x)
        if w.type.ndim != 4:
            raise ValueError(
                f"conv2d(): w has {w.type.ndim} axes, shape {w.type.shape}; expected 4: "
                "(height, width, channels / groups, filters)."
            )
        _check_same_dtype(x, w, "w")
        self._check_channels(x.type.shape, w.type.shape)

    def _output_type(self, x: Any, w: Any) -> TensorType:
        lengths = (*x.type.shape[1:3], *w.type.shape[:2])
        output: tuple[int | None, ...] = (None, None)
        if None not in lengths:
            output = lay_windows("conv2d", lengths[:2], lengths[2:], self.stride, self.dilation, self.padding).output
        return TensorType(x.type.dtype, shape=(x.type.shape[0], *output, w.type.shape[3]))

    def _check_cotangent(self, windows: Windows, x: np.ndarray, w: np.ndarray, g: np.ndarray) -> None:
        expected = (x.shape[0], *windows.output, w.shape[3])
        if g.shape != expected:
            raise ValueError(f"{type(self).__name__}: the cotangent has shape {g.shape}; expected {expected}.")


class Conv2d(Convolution):
    """Images (examples, height, width, channels) and filters (height, width, channels / groups, filters) to images."""

    def make_node(self, x: Any, w: Any) -> Apply:
        x, w = pt.as_tensor_variable(x), pt.as_tensor_variable(w)
        self._check_variables(x, w)
        return Apply(self, [x, w], [self._output_type(x, w)()])

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[Any]]) -> None:
        x, w = inputs
        windows = self.windows(x.shape, w.shape)
        y = _patches(x, windows, self.groups) @ _grouped_filters(w, self.groups)
        output_storage[0][0] = _from_groups(y).reshape(x.shape[0], *windows.output, w.shape[3]).astype(x.dtype)

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        x, w = input_shapes
        output = [
            output_length(
                x[1 + axis],
                w[axis],
                self.stride[axis],
                self.dilation[axis],
                self.padding if isinstance(self.padding, str) else self.padding[axis],
            )
            for axis in range(2)
        ]
        return [(x[0], *output, w[3])]

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        x, w = inputs
        (g,) = cotangents
        if isinstance(g.type, DisconnectedType):
            return [g, g]
        return [Conv2dInputGradient(*self.settings)(x, w, g), Conv2dFilterGradient(*self.settings)(x, w, g)]


class ConvolutionGradient(Convolution):
    """A derivative of ``<convolve(x, w), g>``; of the argument that it derives by, only the shape is read."""

    #: The position, among (x, w, g), of the argument that it derives by.
    position: int

    def make_node(self, x: Any, w: Any, g: Any) -> Apply:
        inputs = [pt.as_tensor_variable(variable) for variable in (x, w, g)]
        self._check_variables(*inputs[:2])
        check_image(type(self).__name__, inputs[2])
        _check_same_dtype(inputs[0], inputs[2], "the cotangent")
        return Apply(self, inputs, [inputs[self.position].type()])

    def output_shapes(self, node: Apply, input_shapes: list[Any]) -> list[Any]:
        return [input_shapes[self.position]]

    def connection_pattern(self, node: Apply) -> list[list[bool]]:
        return [[position != self.position] for position in range(3)]


class Conv2dInputGradient(ConvolutionGradient):
    """The gradient by the images: w and g convolved to the shape of x."""

    position = 0

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[Any]]) -> None:
        x, w, g = inputs
        windows = self.windows(x.shape, w.shape)
        self._check_cotangent(windows, x, w, g)
        patches = _to_groups(_at_least_single(g), self.groups) @ _grouped_filters(w, self.groups).transpose(0, 2, 1)
        # (groups, pixels, positions * channels) to (positions, pixels, groups * channels)
        groups, pixels, _ = patches.shape
        patches = patches.reshape(groups, pixels, w.shape[0] * w.shape[1], w.shape[2]).transpose(2, 1, 0, 3)
        padded = np.zeros((x.shape[0], *windows.padded, x.shape[3]), patches.dtype)
        for where, patch in zip(windows.slices(), patches, strict=True):
            padded[where] += patch.reshape(x.shape[0], *windows.output, x.shape[3])
        output_storage[0][0] = np.ascontiguousarray(windows.interior(padded), dtype=x.dtype)

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        _, w, g = inputs
        (u,) = cotangents
        if isinstance(u.type, DisconnectedType):
            return [u, u, u]
        by_filters = Conv2dFilterGradient(*self.settings)(u, w, g)
        return [DisconnectedType()(), by_filters, Conv2d(*self.settings)(u, w)]


class Conv2dFilterGradient(ConvolutionGradient):
    """The gradient by the filters: x and g convolved to the shape of w."""

    position = 1

    def perform(self, node: Apply, inputs: Sequence[np.ndarray], output_storage: list[list[Any]]) -> None:
        x, w, g = inputs
        windows = self.windows(x.shape, w.shape)
        self._check_cotangent(windows, x, w, g)
        product = _patches(x, windows, self.groups).transpose(0, 2, 1) @ _to_groups(_at_least_single(g), self.groups)
        output_storage[0][0] = _from_groups(product).reshape(w.shape).astype(w.dtype)

    def pullback(self, inputs: Any, outputs: Any, cotangents: Any) -> list[Any]:
        x, _, g = inputs
        (v,) = cotangents
        if isinstance(v.type, DisconnectedType):
            return [v, v, v]
        by_images = Conv2dInputGradient(*self.settings)(x, v, g)
        return [by_images, DisconnectedType()(), Conv2d(*self.settings)(x, v)]


def conv2d(x: Any, w: Any, stride: Any = 1, padding: Any = 0, dilation: Any = 1, groups: int = 1) -> TensorVariable:
    """Two-dimensional convolution (cross-correlation, as everywhere in deep learning), channels last.

    y[n, i, j, o] := sum over a, b, c of x[n, i * stride + a * dilation - top, j * stride + b * dilation - left, c]
                     * w[a, b, c, o]

    Parameters:
        x: images (examples, height, width, channels), float16, float32 or float64.
        w: filters (height, width, channels / groups, filters), of x's dtype.
        stride, dilation: an int, or (vertical, horizontal).
        padding: zeros around the images: an int, (vertical, horizontal), ((top, bottom), (left, right)), "valid" for
            none, or "same" for ceil(length / stride) outputs along each axis, an odd zero going to the bottom and the
            right (TensorFlow's meaning).
        groups: the channels are cut into so many groups, each seen by its own ``filters / groups`` filters.

    Returns images (examples, output height, output width, filters) of x's dtype.
    Raises TypeError for integers or unequal dtypes, ValueError for shapes that do not fit: at once where shapes are
    known, else at the call.

    LeCun et al., "Gradient-based learning applied to document recognition", Proceedings of the IEEE 1998; groups:
    Krizhevsky et al., "ImageNet classification with deep convolutional neural networks", NIPS 2012.
    """
    if not isinstance(groups, (int, np.integer)) or groups < 1:
        raise ValueError(f"conv2d(): groups is an int of at least 1; it came as {groups!r}.")
    op = Conv2d(
        pair("conv2d", "stride", stride),
        pair("conv2d", "dilation", dilation),
        padding_pairs("conv2d", padding),
        int(groups),
    )
    return op(x, w)


def _check_same_dtype(x: Any, other: Any, name: str) -> None:
    if x.type.dtype != other.type.dtype:
        raise TypeError(
            f"conv2d(): x has dtype {x.type.dtype} and {name} has dtype {other.type.dtype}; both need the same float "
            f'dtype. Convert one, for instance with .astype("{x.type.dtype}").'
        )


def _at_least_single(array: np.ndarray) -> np.ndarray:
    """Half precision is stored, not computed with."""
    return array.astype(np.float32) if array.dtype == np.float16 else array


def _to_groups(array: np.ndarray, groups: int) -> np.ndarray:
    """(..., channels) to (groups, everything else, channels / groups)."""
    return array.reshape(-1, groups, array.shape[-1] // groups).transpose(1, 0, 2)


def _from_groups(array: np.ndarray) -> np.ndarray:
    """(groups, rows, channels / groups) to (rows, channels)."""
    groups, rows, channels = array.shape
    return np.ascontiguousarray(array.transpose(1, 0, 2)).reshape(rows, groups * channels)


def _patches(x: np.ndarray, windows: Windows, groups: int) -> np.ndarray:
    """What each window sees: (groups, windows of all examples, positions in a window * channels / groups)."""
    padded = np.pad(_at_least_single(x), windows.pad_width)
    positions = np.stack([padded[where] for where in windows.slices()], axis=3)
    count, channels = positions.shape[3:]
    patches = positions.reshape(-1, count, groups, channels // groups).transpose(2, 0, 1, 3)
    return patches.reshape(groups, -1, count * channels // groups)


def _grouped_filters(w: np.ndarray, groups: int) -> np.ndarray:
    """(height, width, channels, filters) to (groups, height * width * channels, filters / groups)."""
    return _to_groups(_at_least_single(w).reshape(-1, w.shape[3]), groups)
