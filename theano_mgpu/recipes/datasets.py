"""A recipe's data: found by what is in the folder, and described so that a resumed run knows it again."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from theano_mgpu import data
from theano_mgpu.data import Examples
from theano_mgpu.recipes.settings import Recipe
from theano_mgpu.user_cache import user_cache

__all__ = ["Dataset", "open_dataset"]

_PHOTOGRAPHS_PER_CLASS = 48  # training crops of each; 78 steps of 8 an epoch


@dataclass(frozen=True, eq=False)
class Dataset:
    """Training and validation examples. ``name`` is what the recipe calls it; a label is a place in ``classes``."""

    name: str
    train: Any
    val: Any
    classes: tuple[str, ...]

    def description(self) -> dict[str, Mapping[str, str]]:
        """Of each split and class, how many examples there are and a digest of them: names and sizes of files."""
        return {
            f"{split} images (number, digest)": _digests(source, self.classes)
            for split, source in (("training", self.train), ("validation", self.val))
        }


def open_dataset(recipe: Recipe) -> Dataset:
    """The examples of ``recipe.data``: "photos", "digits", a pack, CIFAR's or MNIST's files, or a folder of images.

    Raises FileNotFoundError or another error of the reader that fits, naming the folder.
    """
    if recipe.data == "digits":
        return _in_memory("digits", data.digits(seed=recipe.seed))
    if recipe.data == "photos":
        return _photographs(recipe)
    path = Path(recipe.data).expanduser()
    if not path.exists():
        raise FileNotFoundError(
            f"'data' is '{recipe.data}', and there is no such folder. Give one in ImageNet's layout (train/CLASS/*, "
            'val/CLASS/*), or "photos" or "digits".'
        )
    for file, read in (("test_batch.bin", data.cifar10), ("test.bin", data.cifar100)):
        if any(place.is_file() for place in (path / file, *path.glob(f"cifar-*/{file}"))):
            return _in_memory(str(path), read(path))
    if any(path.glob("train-images-idx3-ubyte*")):
        return _in_memory(str(path), data.mnist(path))
    if data.is_pack(path):
        pack = data.packed(path)
        return Dataset(str(path), pack.train, pack.val, pack.classes)
    folder = data.image_folder(
        path, val_fraction=recipe.val_fraction, seed=recipe.seed, on_bad_image=recipe.on_bad_image
    )
    return Dataset(str(path), folder.train, folder.val, folder.classes)


def _photographs(recipe: Recipe) -> Dataset:
    size = recipe.image_sizes[1]
    folder = user_cache() / f"photographs-{size}-{recipe.seed}"
    try:
        data.photographs(folder, image_size=size, train_per_class=_PHOTOGRAPHS_PER_CLASS, seed=recipe.seed)
    except OSError as error:
        if error.errno is None:  # what photographs() says itself
            raise
        raise OSError(
            error.errno,
            f"the bundled photographs could not be written to '{folder}': {error.strerror}. Set XDG_CACHE_HOME to a "
            "folder that can be written, with room for some megabytes.",
        ) from error
    read = {split: data.read_split(folder, split) for split in ("train", "val")}
    return Dataset("photos", read["train"], read["val"], data.class_names(folder))


def _in_memory(name: str, splits: data.Splits) -> Dataset:
    return Dataset(name, splits.train, splits.val, splits.classes)


def _digests(source: Any, classes: tuple[str, ...]) -> dict[str, str]:
    labels = np.asarray(source.labels)
    order = np.argsort(labels, kind="stable")
    stops = np.searchsorted(labels[order], np.arange(len(classes) + 1))
    return {
        name: f"{stop - start}, {_digest(source, order[start:stop])}"
        for name, start, stop in zip(classes, stops[:-1].tolist(), stops[1:].tolist(), strict=True)
    }


def _digest(source: Any, rows: np.ndarray) -> str:
    digest = hashlib.blake2b(digest_size=8)
    if isinstance(source, Examples):
        digest.update(source.images[rows].tobytes())
    else:
        digest.update(source.file_sizes[rows].tobytes())
        digest.update("\0".join(source.name(row) for row in rows.tolist()).encode(errors="surrogateescape"))
    return digest.hexdigest()
