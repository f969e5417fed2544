"""Convolutions on a device: matrix products where they are faster, else XLA's convolutions.

ResNet-50's 1x1 convolutions, batch 8 over two devices on two cores, run at 38 - 66 GF/s as matrix products and at
32 - 65 as convolutions by Eigen; those with 2048 channels have their input gradient at 64 instead of 41.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from theano_mgpu.lowering.dispatch import lowers
from theano_mgpu.lowering.windows import scattered, slices
from theano_mgpu.nn.convolution import Conv2d, Conv2dFilterGradient, Conv2dInputGradient, Convolution
from theano_mgpu.nn.windows import Windows

__all__: list[str] = []


@lowers(Conv2d)
def conv2d(op: Conv2d, node: Any, **_: Any) -> Callable[..., jax.Array]:
    def convolve(x: jax.Array, w: jax.Array) -> jax.Array:
        windows = op.windows(x.shape, w.shape)
        if not _is_product(op, windows):
            return _convolved(op, windows, x, w)
        y = _rows(_every_stride(x, windows)) @ w[0, 0]
        return y.reshape(x.shape[0], *windows.output, w.shape[3])

    return convolve


@lowers(Conv2dInputGradient)
def conv2d_input_gradient(op: Conv2dInputGradient, node: Any, **_: Any) -> Callable[..., jax.Array]:
    def input_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        windows = op.windows(x.shape, w.shape)
        if not _is_product(op, windows):
            (gradient,) = jax.linear_transpose(lambda images: _convolved(op, *_padded(windows, images), w), x)(g)
            return gradient
        gradient = (_rows(g) @ w[0, 0].T).reshape(*g.shape[:3], x.shape[3])
        return _spread(gradient, windows)

    return input_gradient


@lowers(Conv2dFilterGradient)
def conv2d_filter_gradient(op: Conv2dFilterGradient, node: Any, **_: Any) -> Callable[..., jax.Array]:
    def filter_gradient(x: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        windows = op.windows(x.shape, w.shape)
        if _is_product(op, windows):
            rows, cotangents = _rows(_every_stride(x, windows)), _rows(g)
            # The sums are float32 anyway: that they leave unrounded costs nothing.
            full = jnp.promote_types(rows.dtype, jnp.float32)
            return jnp.matmul(rows.T, cotangents, preferred_element_type=full)[None, None]
        (gradient,) = jax.linear_transpose(lambda filters: _convolved(op, windows, x, filters), w)(g)
        return gradient

    return filter_gradient


def _is_product(op: Convolution, windows: Windows) -> bool:
    return op.groups == 1 and windows.size == (1, 1) and windows.padding == ((0, 0), (0, 0))


def _convolved(op: Convolution, windows: Windows, x: jax.Array, w: jax.Array) -> jax.Array:
    return lax.conv_general_dilated(
        x,
        w,
        op.stride,
        windows.padding,
        rhs_dilation=op.dilation,
        dimension_numbers=("NHWC", "HWIO", "NHWC"),
        feature_group_count=op.groups,
    )


def _padded(windows: Windows, x: jax.Array) -> tuple[Windows, jax.Array]:
    """Images padded beforehand where XLA would abort the process.

    Its simplifier (of jax 0.10 and 0.12) takes the gradient along an axis of size 2, stride 2 and padding 1 for one of
    its grouped convolutions, and changes only half of it; with the padding outside, the gradient looks different.
    """
    axes = zip(windows.size, windows.stride, windows.dilation, windows.padding, strict=True)
    if not any((size, stride, dilation, low) == (2, 2, 1, 1) for size, stride, dilation, (low, _) in axes):
        return windows, x
    outside = replace(windows, image=windows.padded, padding=((0, 0), (0, 0)))
    return outside, jnp.pad(x, windows.pad_width)


def _rows(x: jax.Array) -> jax.Array:
    """(examples, height, width, channels) to (pixels, channels)."""
    return x.reshape(-1, x.shape[3])


def _every_stride(x: jax.Array, windows: Windows) -> jax.Array:
    """The pixels that a 1x1 convolution reads."""
    return x if windows.stride == (1, 1) else next(slices(x, windows, 0))


def _spread(gradient: jax.Array, windows: Windows) -> jax.Array:
    """The transpose of ``_every_stride``: zeros between the pixels."""
    return gradient if windows.stride == (1, 1) else scattered([gradient], windows)
