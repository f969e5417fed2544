"""Residual networks: ImageNet's as torchvision builds them, and the ones of the CIFAR experiments.

He et al., "Deep residual learning for image recognition", CVPR 2016: table 1 and section 4.2.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

from theano_mgpu import layers, nn, regions
from theano_mgpu.init import he_normal
from theano_mgpu.store import ParameterStore

__all__ = ["resnet"]

#: Blocks per stage. ImageNet's networks have four stages, CIFAR's three of (depth - 2) / 6 blocks.
_IMAGENET = {18: (2, 2, 2, 2), 34: (3, 4, 6, 3), 50: (3, 4, 6, 3), 101: (3, 4, 23, 3), 152: (3, 8, 36, 3)}
_CIFAR = {depth: ((depth - 2) // 6,) * 3 for depth in (20, 32, 44, 56, 110)}


def resnet(
    store: ParameterStore,
    images: Any,
    depth: int,
    num_classes: int,
    train: bool,
    stem: Literal["imagenet", "cifar"] | None = None,
    sync: bool = False,
    zero_init_residual: bool = False,
    recompute: bool = False,
    blur_pool: bool = False,
) -> TensorVariable:
    """A residual network: images (examples, height, width, channels) to logits (examples, num_classes).

    Parameters:
        images: uint8 with three channels, normalised here with ImageNet's mean and deviation; or floats, taken as
            normalised already, of any known number of channels. Height and width need not be known.
        depth: 18, 34, 50, 101, 152 (ImageNet; "v1.5" as in torchvision: a bottleneck's stride is in its 3x3
            convolution) or 20, 32, 44, 56, 110 (CIFAR: stages of 16, 32 and 64 filters, shortcuts without parameters).
        num_classes: the number of logits.
        train: with True batch norm uses the batch's statistics and registers its moving averages with the store: add
            ``store.updates()`` to the step's. False builds the evaluation graph on the same parameters.
        stem: "imagenet", a 7x7 convolution of stride 2 and a 3x3 max-pool of stride 2, or "cifar", a 3x3 convolution of
            stride 1; by default what the depth was published with.
        sync: batch statistics over the whole batch, not over each shard by itself.
        zero_init_residual: begin with each block as its shortcut alone, its last scale at 0 instead of 1: learns faster
            at first (Goyal et al., "Accurate, large minibatch SGD", 2017, section 5.1).
        recompute: compute each block's activations again in the backward pass (``tm.recompute``): less memory, more
            time, the same gradients.
        blur_pool: blur what goes into convolutions of stride 2 with at least 16 channels by [1, 2, 1] / 4 along both
            axes (Zhang, "Making convolutional networks shift-invariant again", ICML 2019), as in FFCV's recipes.

    Parameters have torchvision's names. Convolutions begin as ``he_normal(mode="fan_out")``.
    Raises ValueError for another depth, stem, number of axes, channels, dtype or num_classes; TypeError if ``train`` or
    ``recompute`` is not a bool.
    """
    if depth not in _IMAGENET and depth not in _CIFAR:
        raise ValueError(
            f"resnet(): 'depth' should be one of {', '.join(map(str, [*_IMAGENET, *_CIFAR]))}, not {depth!r}."
        )
    stem = stem or ("imagenet" if depth in _IMAGENET else "cifar")
    if stem not in ("imagenet", "cifar"):
        raise ValueError(f"resnet(): 'stem' should be 'imagenet' or 'cifar', not {stem!r}.")
    if isinstance(num_classes, bool) or not isinstance(num_classes, (int, np.integer)) or num_classes < 1:
        raise ValueError(f"resnet(): 'num_classes' should be a positive integer, not {num_classes!r}.")
    if not isinstance(train, bool):
        raise TypeError(f"resnet(): 'train' should be True or False, not {train!r}; build one graph for each.")
    if not isinstance(recompute, bool):
        raise TypeError(f"resnet(): 'recompute' should be True or False, not {recompute!r}.")

    build = _Builder(store, train, sync, 0.0 if zero_init_residual else 1.0, blur_pool)
    x = _normalised(images)
    width = 64 if depth in _IMAGENET else 16
    if stem == "imagenet":
        x = nn.relu(build.norm("bn1", build.conv("conv1", x, width, 7, stride=2)))
        x = nn.max_pool2d(x, 3, stride=2, padding=1)
    else:
        x = nn.relu(build.norm("bn1", build.conv("conv1", x, width, 3)))
    if depth in _CIFAR:
        block, shortcut = _basic, _padded
    else:
        block, shortcut = (_basic if depth < 50 else _bottleneck), _projected
    for stage, blocks in enumerate((_IMAGENET | _CIFAR)[depth]):
        for index in range(blocks):
            stride = 2 if stage > 0 and index == 0 else 1
            name, filters = f"layer{stage + 1}.{index}", width * 2**stage
            one_block = partial(block, build, name, width=filters, stride=stride, shortcut=shortcut)
            x = regions.recompute(one_block)(x) if recompute else one_block(x)
    return layers.dense(store, "fc", nn.global_avg_pool2d(x), int(num_classes))


@dataclass(frozen=True)
class _Builder:
    """What all layers of one network share."""

    store: ParameterStore
    train: bool
    sync: bool
    last_scale: float
    blur_pool: bool

    def conv(self, name: str, x: TensorVariable, filters: int, size: int, stride: int = 1) -> TensorVariable:
        if self.blur_pool and stride > 1 and x.type.shape[-1] >= 16:
            x = _blurred(x)
        return layers.conv2d(
            self.store, name, x, filters, size, stride, padding=size // 2, bias=False, init=he_normal(mode="fan_out")
        )

    def norm(self, name: str, x: TensorVariable, scale: float = 1.0) -> TensorVariable:
        return layers.batch_norm(self.store, name, x, self.train, self.sync, init=scale)


def _blurred(x: TensorVariable) -> TensorVariable:
    channels = x.type.shape[-1]
    one = np.outer([1, 2, 1], [1, 2, 1]).astype("float32") / 16
    return nn.conv2d(x, np.broadcast_to(one[:, :, None, None], (3, 3, 1, channels)), padding=1, groups=channels)


Shortcut = Callable[[_Builder, str, TensorVariable, int, int], TensorVariable]


def _basic(
    build: _Builder, name: str, x: TensorVariable, width: int, stride: int, shortcut: Shortcut
) -> TensorVariable:
    """Two 3x3 convolutions (figure 5, left)."""
    y = nn.relu(build.norm(f"{name}.bn1", build.conv(f"{name}.conv1", x, width, 3, stride)))
    y = build.norm(f"{name}.bn2", build.conv(f"{name}.conv2", y, width, 3), build.last_scale)
    return nn.relu(y + shortcut(build, name, x, width, stride))


def _bottleneck(
    build: _Builder, name: str, x: TensorVariable, width: int, stride: int, shortcut: Shortcut
) -> TensorVariable:
    """1x1, 3x3 and 1x1 convolutions, the last four times as wide (figure 5, right)."""
    y = nn.relu(build.norm(f"{name}.bn1", build.conv(f"{name}.conv1", x, width, 1)))
    y = nn.relu(build.norm(f"{name}.bn2", build.conv(f"{name}.conv2", y, width, 3, stride)))
    y = build.norm(f"{name}.bn3", build.conv(f"{name}.conv3", y, 4 * width, 1), build.last_scale)
    return nn.relu(y + shortcut(build, name, x, 4 * width, stride))


def _projected(build: _Builder, name: str, x: TensorVariable, filters: int, stride: int) -> TensorVariable:
    """The identity; where the shape changes, a 1x1 convolution (option B)."""
    if stride == 1 and x.type.shape[-1] == filters:
        return x
    return build.norm(f"{name}.downsample.1", build.conv(f"{name}.downsample.0", x, filters, 1, stride))


def _padded(build: _Builder, name: str, x: TensorVariable, filters: int, stride: int) -> TensorVariable:
    """The identity; where the shape changes, every second pixel and zeros for the new channels (option A)."""
    if stride == 1:
        return x
    x = x[:, ::stride, ::stride, :]
    return pt.concatenate([x, pt.zeros_like(x)], axis=3)


def _normalised(images: Any) -> TensorVariable:
    """Images as float32, uint8 ones scaled to ImageNet's mean and deviation."""
    images = pt.as_tensor_variable(images)
    shape, dtype = images.type.shape, images.type.dtype
    if len(shape) != 4 or shape[3] is None:
        raise ValueError(
            "resnet(): 'images' should have four axes (examples, height, width, channels) and a known number of "
            f"channels, not shape {shape}; make them with pt.tensor(..., shape=(None, 224, 224, 3)) or use "
            "pt.specify_shape."
        )
    if dtype.startswith("float"):
        return images.astype("float32")
    if dtype != "uint8" or shape[3] != 3:
        raise ValueError(
            "resnet(): 'images' should be uint8 with three channels, or floats that are normalised already; not "
            f"{dtype} with {shape[3]} channels."
        )
    return nn.normalise_images(images)
