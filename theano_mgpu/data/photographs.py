"""A small set of real photographs that needs no download: crops of those that scikit-image and scikit-learn carry.

A class is a photograph, an example is a random crop of it. Training and validation crops come from different parts of
it, side by side, that have no pixel in common.
"""

from __future__ import annotations

import json
import os
import tempfile
import zlib
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image, ImageEnhance

__all__ = ["Photograph", "bundled_photographs", "photographs"]

_MANIFEST = "photographs.json"
_JITTER = 0.2  # brightness, contrast and saturation of a training crop vary by this factor up and down

Box = tuple[int, int, int, int]  # left, top, right, bottom, in pixels


@dataclass(frozen=True)
class Photograph:
    """A photograph inside an installed package, and the parts of its width that the crops of each split come from."""

    name: str
    package: str
    file: str
    train: tuple[float, float] = (0.5, 1.0)  # from the left edge, 0, to the right edge, 1
    val: tuple[float, float] = (0.0, 0.5)

    @property
    def path(self) -> Path:
        """Where the file is. Raises FileNotFoundError, naming the package, if it is not installed or lacks the file."""
        # find_spec locates a package without importing it: scikit-learn's import alone takes a second.
        spec = find_spec(self.package)
        for root in (spec.submodule_search_locations or ()) if spec else ():
            path = Path(root) / self.file
            if path.is_file():
                return path
        raise FileNotFoundError(
            f"photographs(): the photograph '{self.name}' is not in the installed package '{self.package}' as "
            f"'{self.file}'. Expected scikit-image 0.24 and scikit-learn 1.5, or newer, from their wheels."
        )


# Where two halves show different things, other parts were chosen, with a small network's accuracy in view.
_PHOTOGRAPHS = (
    Photograph("astronaut", "skimage", "data/astronaut.png", train=(0.35, 1.0), val=(0.0, 0.35)),
    Photograph("brick", "skimage", "data/brick.png"),
    Photograph("chelsea", "skimage", "data/chelsea.png"),
    # The pagoda's left half and its right half; the rest is a lake without it.
    Photograph("china", "sklearn", "datasets/images/china.jpg", train=(0.0, 0.4), val=(0.4, 0.7)),
    Photograph("coffee", "skimage", "data/coffee.png"),
    Photograph("coins", "skimage", "data/coins.png", train=(0.0, 0.6), val=(0.6, 1.0)),
    Photograph("flower", "sklearn", "datasets/images/flower.jpg"),
    Photograph("gravel", "skimage", "data/gravel.png"),
    Photograph("hubble_deep_field", "skimage", "data/hubble_deep_field.jpg"),
    Photograph("immunohistochemistry", "skimage", "data/ihc.png", train=(0.0, 0.5), val=(0.5, 1.0)),
    Photograph("motorcycle", "skimage", "data/motorcycle_left.png"),
    Photograph("retina", "skimage", "data/retina.jpg"),
    Photograph("rocket", "skimage", "data/rocket.jpg"),
)


@dataclass(frozen=True)
class _Settings:
    """What decides every pixel of the data set; kept in its manifest."""

    image_size: int
    train_per_class: int
    val_per_class: int
    seed: int
    classes: tuple[str, ...]


def bundled_photographs() -> tuple[Photograph, ...]:
    """The photographs that are the classes of the data set, sorted by name."""
    return _PHOTOGRAPHS


def photographs(
    folder: str | Path, *, image_size: int = 224, train_per_class: int = 48, val_per_class: int = 8, seed: int = 0
) -> Path:
    """Write the data set of bundled photographs as JPEG files and return its folder.

    The layout is ImageNet's: ``train/CLASS/*.jpg`` and ``val/CLASS/*.jpg``, each ``image_size`` pixels square, with
    ``train_per_class`` and ``val_per_class`` files a class. Training crops are mirrored at random and vary in
    brightness, contrast and saturation; validation crops come, unaltered, from a part that no training crop touches.
    Every random choice depends on ``(seed, split, class, index)`` alone.

    A folder that is already there is taken as it is, and files missing in it are written again. A run that is cut off
    leaves no folder behind. ``photographs.json`` in the folder lists the settings and the box of every crop.

    Raises ValueError if the folder was written with other settings, naming them, or a number is out of range;
    FileExistsError if there is something else in the folder; FileNotFoundError if a photograph's package is missing.
    """
    for name, value in (
        ("image_size", image_size),
        ("train_per_class", train_per_class),
        ("val_per_class", val_per_class),
    ):
        if value < 1:
            raise ValueError(f"photographs(): '{name}' must be at least 1, got {value}.")
    if seed < 0:
        raise ValueError(f"photographs(): 'seed' must not be negative, got {seed}.")
    folder = Path(folder)
    settings = _Settings(image_size, train_per_class, val_per_class, seed, tuple(p.name for p in _PHOTOGRAPHS))
    if (folder / _MANIFEST).exists():
        _check_settings(folder, settings)
        _write_missing(folder, settings)
        return folder
    if folder.exists() and any(folder.iterdir()):
        raise FileExistsError(
            f"photographs(): '{folder}' holds files that photographs() did not write (it has no {_MANIFEST}). "
            "Give another folder, or empty it."
        )
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=f".{folder.name}.", dir=folder.parent) as scratch:
        whole = Path(scratch) / folder.name
        crops = _write_missing(whole, settings)
        (whole / _MANIFEST).write_text(json.dumps({"settings": asdict(settings), "crops": crops}, indent=1) + "\n")
        # The one visible change: the folder appears whole or not at all.
        os.replace(whole, folder)
    return folder


def _check_settings(folder: Path, settings: _Settings) -> None:
    wanted = json.loads(json.dumps(asdict(settings)))
    written = json.loads((folder / _MANIFEST).read_text())["settings"]
    different = [
        f"'{name}' is {written.get(name)!r} there, {value!r} here"
        for name, value in wanted.items()
        if written.get(name) != value
    ]
    if different:
        raise ValueError(
            f"photographs(): '{folder}' was written with other settings: {'; '.join(different)}. "
            "Give another folder, or delete this one."
        )


def _write_missing(folder: Path, settings: _Settings) -> dict[str, Box]:
    """Write the examples that ``folder`` lacks; the box of every example, whether it was there or not."""
    crops: dict[str, Box] = {}
    for photograph in _PHOTOGRAPHS:
        with Image.open(photograph.path) as file:
            picture = file.convert("RGB")
        for split, count in (("train", settings.train_per_class), ("val", settings.val_per_class)):
            (folder / split / photograph.name).mkdir(parents=True, exist_ok=True)
            for index in range(count):
                name = f"{split}/{photograph.name}/{index:04d}.jpg"
                rng = np.random.default_rng(
                    [settings.seed, zlib.crc32(split.encode()), zlib.crc32(photograph.name.encode()), index]
                )
                crops[name] = _draw_box(rng, photograph, picture.size, split)
                if not (folder / name).exists():
                    example = _example(rng, picture, crops[name], settings.image_size, altered=split == "train")
                    example.save(folder / name, quality=90)
    return crops


def _draw_box(rng: np.random.Generator, photograph: Photograph, size: tuple[int, int], split: str) -> Box:
    """A random square inside the split's part of a photograph of ``size`` (width, height).

    It is 0.7 to 1.2 times (validation: to 1) as wide as the narrower of the two parts.
    """
    width, height = size
    parts = {name: tuple(round(width * x) for x in getattr(photograph, name)) for name in ("train", "val")}
    left, right = parts[split]
    narrower = min(end - start for start, end in parts.values())
    side = min(round(narrower * rng.uniform(0.7, 1.2 if split == "train" else 1.0)), right - left, height)
    x = int(rng.integers(left, right - side + 1))
    y = int(rng.integers(0, height - side + 1))
    return x, y, x + side, y + side


def _example(
    rng: np.random.Generator, picture: Image.Image, box: Box, image_size: int, *, altered: bool
) -> Image.Image:
    # Cropped before it is resized: a resize with a box would let its filter look at pixels outside.
    crop = picture.crop(box).resize((image_size, image_size), Image.Resampling.BICUBIC)
    if not altered:
        return crop
    if rng.random() < 0.5:
        crop = crop.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    for enhance in (ImageEnhance.Brightness, ImageEnhance.Contrast, ImageEnhance.Color):
        crop = enhance(crop).enhance(rng.uniform(1 - _JITTER, 1 + _JITTER))
    return crop
