"""Images as a network takes them: float32, of mean 0 and deviation 1."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.variable import TensorVariable

__all__ = ["IMAGENET_DEVIATION", "IMAGENET_MEAN", "checked_images", "normalise_images"]

#: ImageNet's, of red, green and blue scaled to 0..1, as in torchvision.
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_DEVIATION = (0.229, 0.224, 0.225)


def normalise_images(
    images: Any, mean: Sequence[float] = IMAGENET_MEAN, std: Sequence[float] = IMAGENET_DEVIATION
) -> TensorVariable:
    """Pixels from 0 to 255 to float32: ``(images / 255 - mean) / std``, channel by channel.

    Parameters:
        images: (examples, height, width, channels), uint8; or floats from 0 to 255, as ``mixup`` gives.
        mean, std: one number a channel, of pixels scaled to 0..1; ImageNet's by default.

    Raises ValueError for other axes or numbers of channels, or a deviation that is not positive; TypeError for a dtype.
    """
    images = checked_images("normalise_images", images)
    means, deviations = np.asarray(mean, "float64"), np.asarray(std, "float64")
    if means.ndim != 1 or means.shape != deviations.shape or not (deviations > 0).all():
        raise ValueError(
            f"normalise_images(): mean and std are one number a channel each, std above 0; they came as {mean!r} and "
            f"{std!r}."
        )
    if images.type.shape[3] not in (None, len(means)):
        raise ValueError(
            f"normalise_images(): images have {images.type.shape[3]} channels, but mean and std {len(means)}."
        )
    # One product and one difference a pixel.
    scale = (1 / (255 * deviations)).astype("float32")
    return images.astype("float32") * scale - (means / deviations).astype("float32")


def checked_images(function: str, images: Any) -> TensorVariable:
    """Images as a variable, after checking axes and dtype."""
    images = pt.as_tensor_variable(images)
    if images.type.ndim != 4:
        raise ValueError(
            f"{function}(): images have shape {images.type.shape}; expected (examples, height, width, channels)."
        )
    if images.type.dtype != "uint8" and not images.type.dtype.startswith("float"):
        raise TypeError(f"{function}(): images have dtype {images.type.dtype}; expected uint8 or a float.")
    return images
