"""Which part of an image is shown: drawn for training, the centre for validation."""

from __future__ import annotations

import math

import numpy as np

from theano_mgpu.data.resize import Box

__all__ = ["centre_crop", "random_resized_crop"]

_TRIES = 10


def random_resized_crop(
    rng: np.random.Generator, width: int, height: int, area: tuple[float, float], ratio: tuple[float, float]
) -> Box:
    """A box of whole pixels with a share of the image's area and a ratio of width to height drawn from two ranges.

    The share is uniform, the ratio log-uniform; after ten boxes that did not fit, the largest in the middle whose ratio
    is within range. As torchvision's RandomResizedCrop draws it.

    Szegedy et al., "Going deeper with convolutions", CVPR 2015, section 6.
    """
    lowest, highest = math.log(ratio[0]), math.log(ratio[1])
    for _ in range(_TRIES):
        target = width * height * rng.uniform(*area)
        aspect = math.exp(rng.uniform(lowest, highest))
        across, down = round(math.sqrt(target * aspect)), round(math.sqrt(target / aspect))
        if 0 < across <= width and 0 < down <= height:
            # Not rng.integers, which takes 50 microseconds for two bounds.
            left, top = int(rng.random() * (width - across + 1)), int(rng.random() * (height - down + 1))
            return Box(left, top, across, down)
    aspect = min(max(width / height, ratio[0]), ratio[1])
    across, down = min(width, max(1, round(height * aspect))), min(height, max(1, round(width / aspect)))
    return Box((width - across) // 2, (height - down) // 2, across, down)


def centre_crop(width: int, height: int, size: int, resize: int) -> Box:
    """The box that is seen by resizing the shorter side to ``resize`` and cutting ``size`` x ``size`` from the middle.

    Rounded as torchvision's Resize and CenterCrop do: the longer side down, the place of the cut to the nearest pixel.
    """
    shorter = min(width, height)
    across, down = int(resize * width / shorter), int(resize * height / shorter)
    left, top = round((across - size) / 2), round((down - size) / 2)
    return Box(left, top, size, size).scaled(width / across, height / down)
