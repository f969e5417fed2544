"""``Recipe``: everything that decides a training run, each by its name, its unit and its default."""

from __future__ import annotations

import dataclasses
import math
import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

from theano_mgpu.errors import RecipeError

__all__ = ["Model", "Recipe"]

# fmt: off
Model = Literal[
    "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
    "resnet20", "resnet32", "resnet44", "resnet56", "resnet110",
]
# fmt: on


@dataclass(frozen=True, kw_only=True)
class Recipe:
    """The settings of a training run: options on the command line, in a TOML file keys of the same names."""

    # Raises RecipeError, naming the key, for a value out of its range. The texts below are the command line's help.

    data: str = "photos"
    """Where the images are: a folder (train/CLASS/*, val/CLASS/*), a pack, the files of CIFAR or MNIST; or "photos",
    the bundled photographs; or "digits", scikit-learn's."""
    val_fraction: float | None = None
    """The part of a folder without val/ that is for validation; a tenth if not given."""
    on_bad_image: Literal["skip", "raise"] = "skip"
    """What to do about files that are broken or no images: name them and leave them out, or stop."""
    workers: int | None = None
    """Processes that decode images; one a core, less one, if not given. 0: none but this one."""

    image_size: int | str = 224
    """Height and width in pixels; "128:224" grows over the epochs in multiples of 32; "160:192@11:13" from epoch 11 to
    13."""
    val_image_size: int | None = None
    """Height and width of validation images; the last of image_size if not given."""
    val_resize: int | None = None
    """What the shorter side of a validation image is scaled to before its centre is cut out. If not given, 256/224 of
    val_image_size where training crops are resized, else that size itself."""
    crop: Literal["resized", "padded", "none"] = "resized"
    """A training image is a random part, resized (Inception's); the image, padded by 4 and cut at random (CIFAR's);
    or the image itself."""
    crop_area: tuple[float, float] = (0.08, 1.0)
    """The least and the largest part of the image's area that a resized crop covers."""
    flip: bool = True
    """Mirror half of the training images."""
    colour_jitter: float = 0.0
    """By what factor brightness, contrast and saturation vary up and down, 0.4 for instance."""
    rand_augment: tuple[int, int] | None = None
    """RandAugment: how many operations on an image, and their magnitude from 0 to 30, such as 2 9."""
    trivial_augment: bool = False
    """TrivialAugment (wide): one operation on an image, of a random magnitude."""
    random_erasing: float = 0.0
    """The probability that a rectangle of a training image is erased."""
    repeats: int = 1
    """How often a drawn image stands in a batch, each time altered anew; an epoch has as many steps as ever."""
    mixup: float = 0.0
    """The alpha of mixup; 0 for none. With cutmix besides, one of both by chance at each step."""
    cutmix: float = 0.0
    """The alpha of CutMix; 0 for none."""

    model: Model = "resnet50"
    """The network: ImageNet's resnet18 to 152, or resnet20 to 110 for images like CIFAR's."""
    sync_batch_norm: bool = False
    """Batch norm over the whole batch, not over each shard by itself."""
    zero_init_residual: bool = True
    """Begin with every residual block as the identity."""
    blur_pool: bool = False
    """Blur before convolutions of stride 2, as FFCV's recipes do."""
    recompute: bool = False
    """Compute activations again in the backward pass: less memory, more time."""

    epochs: float = 90.0
    """The length of the run, and of the learning rate's schedule."""
    max_steps: int | None = None
    """End after so many steps, if that is earlier: for a look whether all works. The schedule stays as it is."""
    time_limit: float | None = None
    """Save and stop after so many seconds; train --resume goes on."""
    patience: int | None = None
    """End after so many evaluations without a better one."""
    batch_size: int = 256
    """Examples a step, over all devices together."""
    shards: int | Literal["auto"] | None = None
    """The pieces that a batch is cut into: what a device computes at a time. One a device if not given; "auto": as
    few as fit into the devices' memory. The same number gives the same bits on any number of devices."""

    # fmt: off
    optimizer: Literal[
        "sgd", "momentum", "nesterov", "adam", "adamw", "rmsprop", "adagrad", "adadelta", "lars", "lamb"
    ] = "nesterov"
    # fmt: on
    """The update rule, by its name in tm.updates."""
    momentum: float = 0.9
    """For momentum, nesterov and lars."""
    learning_rate: float = 0.1
    """The highest learning rate, for a batch of learning_rate_batch examples."""
    learning_rate_batch: int | None = None
    """The batch size that learning_rate is for; it is scaled in proportion to batch_size (Goyal et al., 2017). As it
    stands if not given."""
    schedule: Literal["cosine", "step", "polynomial", "constant"] = "cosine"
    """How the learning rate falls."""
    warmup_epochs: float = 0.0
    """The epochs in which the learning rate rises to its highest."""
    warmup_start: float | Literal["unscaled"] | None = None
    """The part of the highest learning rate that warm-up begins with; "unscaled": at learning_rate as it stands, before
    scaling; one step's part if not given."""
    decay_epochs: tuple[float, ...] = ()
    """schedule = "step": the epochs at which the learning rate is multiplied by decay_factor."""
    decay_factor: float = 0.1
    """See decay_epochs."""
    power: float = 1.0
    """schedule = "polynomial": the exponent; 1 is a straight line."""
    final_learning_rate: float = 0.0
    """What cosine and polynomial end with."""
    learning_rate_changes: Literal["step", "epoch"] = "step"
    """Whether the learning rate changes from step to step or from epoch to epoch."""
    weight_decay: float = 0.0
    """L2 penalty added to the gradients; adamw, lars and lamb decay by their own formulas."""
    weight_decay_on: Literal["weights", "weights and biases", "everything"] = "weights"
    """What decays: not norms and biases, not norms, or every parameter."""
    loss: Literal["cross_entropy", "binary_cross_entropy"] = "cross_entropy"
    """Softmax cross-entropy; or a sigmoid for each class, averaged over the classes."""
    label_smoothing: float = 0.0
    """The part of each target that is spread evenly over all classes."""
    clip_norm: float | None = None
    """Scale gradients down whose common norm is larger."""
    ema: float | None = None
    """Evaluate an exponential moving average of the parameters too, of this decay a step, such as 0.9999."""
    ema_start_epoch: float = 0.0
    """Until then the average is the parameters themselves."""
    nonfinite: Literal["raise", "skip"] = "raise"
    """What to do about a step whose gradients are not finite: stop, or leave it out."""
    evaluate_flipped: bool = False
    """Evaluate the mean of the logits of each image and of its mirror image."""

    contexts: str | None = None
    """The devices: "cuda:0,1", "cpu:4" (simulated), "cuda or cpu:4"; every GPU, else the CPU, if not given."""
    update_on: Literal["host", "device"] = "host"
    """Where gradients are averaged and parameters updated."""
    precision: str = "float32"
    """What activations and gradients are computed in: float32, bfloat16, float16, float64."""

    output: str | None = None
    """The run's folder; a new one in runs/ if not given."""
    seed: int = 0
    """Decides initial parameters, the order of examples, augmentation, and dropout."""
    log_every: int = 10
    """Steps between two lines of metrics."""
    evaluate_every: int | None = None
    """Steps between two evaluations; at the end of each epoch if not given."""
    checkpoint_every: int | None = None
    """Steps between two checkpoints; at the end of each epoch if not given."""
    keep: int = 2
    """The checkpoints to keep, besides the best."""
    on_save_error: Literal["raise", "warn"] = "raise"
    """What to do where a checkpoint or a line of metrics cannot be written, as on a full disk: stop, or go on."""
    tensorboard: bool = True
    """Write TensorBoard's files, too."""

    def __post_init__(self) -> None:
        for problem in _problems(self):
            raise RecipeError(problem)

    @property
    def depth(self) -> int:
        """The network's."""
        return int(self.model.removeprefix("resnet"))

    @property
    def image_sizes(self) -> tuple[int, int]:
        """The first and the last image size."""
        first, _, last = str(self.image_size).partition("@")[0].partition(":")
        return int(first), int(last or first)

    @property
    def evaluation_size(self) -> int:
        """Height and width of validation images."""
        return self.val_image_size or self.image_sizes[1]

    @property
    def evaluation_resize(self) -> int:
        """The shorter side of validation images before they are cropped."""
        return self.val_resize or round(self.evaluation_size * (256 / 224 if self.crop == "resized" else 1))

    @property
    def scaled_learning_rate(self) -> float:
        """The highest learning rate for ``batch_size``."""
        return self.learning_rate * self.batch_size / (self.learning_rate_batch or self.batch_size)

    def set(self, **settings: Any) -> Recipe:
        """The recipe with other settings."""
        return dataclasses.replace(self, **settings)


# fmt: off
_POSITIVE = (
    "repeats", "epochs", "max_steps", "time_limit", "patience", "batch_size", "learning_rate_batch", "power",
    "clip_norm", "log_every", "evaluate_every", "checkpoint_every", "keep", "val_image_size", "val_resize",
)
_NOT_NEGATIVE = (
    "workers", "colour_jitter", "mixup", "cutmix", "learning_rate", "warmup_epochs", "decay_factor",
    "final_learning_rate", "weight_decay", "ema_start_epoch", "seed",
)
_PARTS = ("val_fraction", "random_erasing", "momentum", "label_smoothing", "ema")
# fmt: on


def _problems(recipe: Recipe) -> Iterator[str]:
    """What is wrong with values of the right types."""
    for name in ("data", "output"):
        if getattr(recipe, name) == "":
            yield f"'{name}' is empty; it should be a folder's path. Leave it out for what is taken by default."
    for name in (*_POSITIVE, *_NOT_NEGATIVE, *_PARTS):
        value = getattr(recipe, name)
        if value is None:
            continue
        if not math.isfinite(value):
            yield f"'{name}' should be a finite number, not {value}."
        if name in _POSITIVE and value <= 0:
            yield f"'{name}' should be greater than 0, not {value}."
        if name in _NOT_NEGATIVE and value < 0:
            yield f"'{name}' should be 0 or greater, not {value}."
        if name in _PARTS and not 0 <= value <= 1:
            yield f"'{name}' should lie between 0 and 1, not be {value}."
    if not re.fullmatch(r"[1-9]\d*(:[1-9]\d*(@\d+:\d+)?)?", str(recipe.image_size)):
        yield (
            "'image_size' should be a number of pixels, such as 224, or two, such as \"128:224\", with epochs if they "
            f'matter, "160:192@11:13", not {recipe.image_size!r}.'
        )
    if recipe.shards not in (None, "auto") and (isinstance(recipe.shards, str) or recipe.shards < 1):
        yield f"'shards' should be a number of at least 1 or \"auto\", not {recipe.shards!r}."
    if not 0 < recipe.crop_area[0] <= recipe.crop_area[1] <= 1:
        yield f"'crop_area' should be two parts of an area, the smaller first, such as 0.08 1, not {recipe.crop_area}."
    if recipe.schedule == "step" and not recipe.decay_epochs:
        yield "'decay_epochs' is empty, but schedule = \"step\" falls at these epochs; give some, such as 30 60 80."
    if any(later <= earlier for earlier, later in zip(recipe.decay_epochs, recipe.decay_epochs[1:], strict=False)):
        yield f"'decay_epochs' should increase, but are {recipe.decay_epochs}."
    start = recipe.warmup_start
    if start not in (None, "unscaled") and (isinstance(start, str) or not 0 <= start <= 1):
        yield f"'warmup_start' should lie between 0 and 1, or be \"unscaled\", not {start!r}."
    if recipe.warmup_epochs >= recipe.epochs:
        yield f"'warmup_epochs' is {recipe.warmup_epochs}, but the whole run has {recipe.epochs} epochs."
    if recipe.trivial_augment and recipe.rand_augment:
        yield "'trivial_augment' and 'rand_augment' are both given; use one of them."
