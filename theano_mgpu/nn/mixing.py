"""mixup and CutMix: each image is mixed with another one of its shard, and so are their labels."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor.tensor as pt
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.variable import TensorVariable

from theano_mgpu.nn.images import checked_images
from theano_mgpu.nn.losses import softmax_cross_entropy
from theano_mgpu.nn.targets import one_hot

__all__ = ["Mixed", "cutmix", "mixed_cross_entropy", "mixup", "mixup_or_cutmix"]


@dataclass(frozen=True)
class Mixed:
    """Mixed images, and of what.

    images (examples, height, width, channels), float32. The part ``weight`` (one float32 number for the shard, 0 to 1)
    is of the class in ``labels``, the rest of that in ``other_labels``, both (examples,).
    """

    images: TensorVariable
    labels: TensorVariable
    other_labels: TensorVariable
    weight: TensorVariable

    def targets(self, num_classes: int, label_smoothing: float = 0.0) -> TensorVariable:
        """The classes' parts, float32 (examples, num_classes), each row adding up to 1: what a loss of targets takes.

        Smoothed as in ``one_hot``, which says what is raised.
        """
        first, second = (one_hot(labels, num_classes, label_smoothing) for labels in (self.labels, self.other_labels))
        return self.weight * first + (np.float32(1) - self.weight) * second


def mixup(images: Any, labels: Any, alpha: float, rng: Any) -> tuple[Any, Mixed]:
    """mixup: each image is a weighted sum of itself and another one.

    weight := Beta(alpha, alpha);  images := weight * images + (1 - weight) * images[other]

    Parameters:
        images: (examples, height, width, channels), uint8 or a float; mixing before or after ``normalise_images`` is
            the same, as the weights add up to 1.
        labels: (examples,), integers.
        alpha: above 0; the larger, the nearer to halves. 0.2 is usual for ImageNet.
        rng: a random generator, as from ``pytensor.shared(numpy.random.default_rng(seed))``.

    ``other`` is a random permutation of the shard's examples, drawn with the weight once for each shard, so that the
    same shards mix alike on any number of devices. A shard of one example mixes it with itself: nothing changes.

    Returns the generator's next state and what was mixed: compile with ``updates={rng: next_rng}`` to draw anew each
    call. Raises ValueError for alpha or shapes, TypeError for dtypes or for an rng that is no generator.

    Zhang et al., "mixup: beyond empirical risk minimization", ICLR 2018, equation 1 and figure 1.
    """
    images, labels = _checked("mixup", images, labels, rng, alpha=alpha)
    rng, weight = _drawn_weight(rng, alpha)
    rng, other = rng.permutation(images.shape[0])
    return rng, _blended(images, labels, other, weight, weight)


def cutmix(images: Any, labels: Any, alpha: float, rng: Any) -> tuple[Any, Mixed]:
    """CutMix: a box of each image shows another one's pixels.

    The box has the part 1 - Beta(alpha, alpha) of the image's area, its sides in the image's proportion, and its centre
    anywhere; what stands out over the edge is cut off. ``weight`` is the part of the image that is left.

    Parameters, result and errors as ``mixup``; alpha is mostly 1. One box a shard.

    Yun et al., "CutMix: regularization strategy to train strong classifiers with localizable features", ICCV 2019,
    equations 1 and 2, algorithm 1.
    """
    images, labels = _checked("cutmix", images, labels, rng, alpha=alpha)
    rng, area = _drawn_weight(rng, alpha)
    rng, own, weight = _box(rng, images, area)
    rng, other = rng.permutation(images.shape[0])
    return rng, _blended(images, labels, other, own, weight)


def mixup_or_cutmix(
    images: Any, labels: Any, mixup_alpha: float, cutmix_alpha: float, rng: Any, cutmix_probability: float = 0.5
) -> tuple[Any, Mixed]:
    """For each shard and call one of the two, CutMix with ``cutmix_probability``, as torchvision's recipes do.

    Parameters, result and errors as ``mixup``, and ValueError for a probability outside of 0 to 1.
    """
    images, labels = _checked(
        "mixup_or_cutmix", images, labels, rng, mixup_alpha=mixup_alpha, cutmix_alpha=cutmix_alpha
    )
    if not 0 <= cutmix_probability <= 1:
        raise ValueError(
            f"mixup_or_cutmix(): cutmix_probability lies between 0 and 1; it came as {cutmix_probability!r}."
        )
    rng, cuts = rng.bernoulli(np.float32(cutmix_probability))
    # One draw for either: XLA takes seconds to compile it.
    rng, weight = _drawn_weight(rng, pt.switch(cuts, np.float32(cutmix_alpha), np.float32(mixup_alpha)))
    rng, own, left = _box(rng, images, weight)
    rng, other = rng.permutation(images.shape[0])
    return rng, _blended(images, labels, other, pt.switch(cuts, own, weight), pt.switch(cuts, left, weight))


def mixed_cross_entropy(logits: Any, mixed: Mixed, label_smoothing: float = 0.0) -> TensorVariable:
    """Softmax cross-entropy with mixed labels: ``weight`` times that of one label and the rest times the other's.

    The same as with ``mixed.targets(classes, label_smoothing)`` as targets. Parameters, result (examples,) and errors
    as ``softmax_cross_entropy``.
    """
    first = softmax_cross_entropy(logits, mixed.labels, label_smoothing)
    second = softmax_cross_entropy(logits, mixed.other_labels, label_smoothing)
    weight = mixed.weight.astype(first.type.dtype)
    return weight * first + (np.ones((), first.type.dtype) - weight) * second


def _drawn_weight(rng: Any, alpha: Any) -> tuple[Any, TensorVariable]:
    # In float32: of float64 the last bit may depend on the number of devices.
    alpha = pt.as_tensor_variable(alpha).astype("float32")
    return rng.beta(alpha, alpha, dtype="float32")


def _box(rng: Any, images: TensorVariable, area: TensorVariable) -> tuple[Any, TensorVariable, TensorVariable]:
    """Of the images' pixels 1 outside of the box and 0 inside, (height, width, 1), and the part that lies outside."""
    inside, ratio = [], pt.sqrt(np.float32(1) - area)
    for size in (images.shape[1], images.shape[2]):
        rng, centre = rng.integers(0, size)
        half = (size.astype("float32") * ratio).astype("int64") // 2
        pixels = pt.arange(size)
        # Pixels are from 0 to size - 1: cut off at the edges by itself.
        inside.append((pixels >= centre - half) & (pixels < centre + half))
    rows, columns = inside
    outside = pt.invert(rows[:, None, None] & columns[None, :, None]).astype("float32")
    covered = rows.sum() * columns.sum()
    pixels = images.shape[1] * images.shape[2]
    return rng, outside, (pixels - covered).astype("float32") / pixels.astype("float32")


def _blended(
    images: TensorVariable, labels: TensorVariable, other: TensorVariable, own: TensorVariable, weight: TensorVariable
) -> Mixed:
    """``own``: each pixel's part of its own image."""
    mixed = own * images.astype("float32") + (np.float32(1) - own) * images[other].astype("float32")
    return Mixed(pt.specify_shape(mixed, images.type.shape), labels, labels[other], weight)


def _checked(
    function: str, images: Any, labels: Any, rng: Any, **alphas: float
) -> tuple[TensorVariable, TensorVariable]:
    images, labels = checked_images(function, images), pt.as_tensor_variable(labels)
    if labels.type.ndim != 1 or not labels.type.dtype.startswith(("int", "uint")):
        raise TypeError(f"{function}(): labels have type {labels.type}; expected a vector of integers.")
    for name, alpha in alphas.items():
        if not alpha > 0:
            raise ValueError(
                f"{function}(): {name} is above 0; it came as {alpha!r}. Leave the call out to mix nothing."
            )
    if not isinstance(getattr(rng, "type", None), RandomType):
        raise TypeError(
            f"{function}(): rng is a random generator variable; it came as {rng!r}. "
            "Make one with pytensor.shared(numpy.random.default_rng(seed))."
        )
    return images, labels
