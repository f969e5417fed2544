"""Folders of images: what is in them, as it will be trained on, without a pixel read."""

from __future__ import annotations

import hashlib
import os
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from theano_mgpu.data.decoding import MAX_PIXELS, check_pixels
from theano_mgpu.data.image_files import ImageFiles
from theano_mgpu.data.scan import Scan, scan
from theano_mgpu.data.table import folder_table
from theano_mgpu.errors import ImageError

__all__ = ["BrokenImage", "Duplicate", "ImageFolder", "image_folder"]

_LAYOUT = "Expected train/CLASS/* and val/CLASS/*, or CLASS/*, with images in them."
_VAL_FRACTION = 0.1
_NAMED = 20  # files that a message names; all of them stand in the dataset


@dataclass(frozen=True)
class BrokenImage:
    """A file that is left out, and why."""

    path: Path
    problem: str


@dataclass(frozen=True)
class Duplicate:
    """A training and a validation file with the same bytes."""

    train: Path
    val: Path


@dataclass(frozen=True, eq=False)
class ImageFolder:
    """What ``image_folder`` found. A label is a place in ``classes``; printed, it is a table of classes and counts."""

    path: Path
    classes: tuple[str, ...]
    train: ImageFiles
    val: ImageFiles
    broken: tuple[BrokenImage, ...]
    duplicates: tuple[Duplicate, ...]

    def __str__(self) -> str:
        return folder_table(self)


def image_folder(
    path: str | Path,
    *,
    val_fraction: float | None = None,
    seed: int = 0,
    on_bad_image: Literal["skip", "raise"] = "skip",
    progress: bool | None = None,
    max_pixels: int = MAX_PIXELS,
) -> ImageFolder:
    """A data set of image files: ``train/CLASS/*`` and ``val/CLASS/*``, or ``CLASS/*``, a part of it for validation.

    Without a ``val`` folder, ``val_fraction`` (0.1 if None) of the files are for validation. Which ones depends on
    ``seed`` and each file's name below the class folders' parent alone: a file that is added moves no other.

    JPEG, PNG, WebP and GIF, told apart by content; see ``tm.data.decode`` for what becomes of them. Links are followed,
    names that begin with a dot passed over. Files that are empty, cut off, no image, or of more than ``max_pixels``
    pixels are named in a warning and left out, or with ``on_bad_image="raise"`` end in an ImageError. Warned of, too:
    classes without training images, images one pixel wide or high, folders inside class folders (which are not read),
    and files with the same bytes in both splits.

    The first scan reads each file's beginning and end; what it found is kept in the user's cache (``XDG_CACHE_HOME``)
    for files that keep their modification time and size. ``progress`` shows a bar on standard error; None, if that is a
    terminal.

    Raises FileNotFoundError for a folder that is missing, empty or without classes, NotADirectoryError for a file,
    ValueError for a single class, a class in ``val`` that ``train`` lacks, a split without images, or an argument out
    of range.
    """
    path = Path(path)
    if on_bad_image not in ("skip", "raise"):
        raise ValueError(f"image_folder(): 'on_bad_image' must be 'skip' or 'raise', got {on_bad_image!r}.")
    if val_fraction is not None and not 0 <= val_fraction < 1:
        raise ValueError(f"image_folder(): 'val_fraction' must be at least 0 and less than 1, got {val_fraction}.")
    if max_pixels < 1:
        raise ValueError(f"image_folder(): 'max_pixels' must be at least 1, got {max_pixels}.")
    train, val, classes = _layout(path)
    if val is not None and val_fraction is not None:
        raise ValueError(
            f"image_folder(): 'val_fraction' is {val_fraction}, but '{path}' has a folder 'val' already. "
            "Leave it out, or give the folder 'train' alone as path."
        )
    val_classes = _subfolders(path / val) if val else ()
    folders = [_below(train, name) for name in classes] + [f"{val}/{name}" for name in val_classes]
    found = scan(path, folders, progress=progress)
    found.save()

    problems = _problems(found, max_pixels)
    broken = tuple(BrokenImage(found.path(i), problem) for i, problem in problems.items())
    if broken and on_bad_image == "raise":
        raise ImageError(f"image_folder(): {_broken_sentence(broken)} Remove them, or give on_bad_image='skip'.")
    good = np.ones(len(found.names), dtype=bool)
    good[list(problems)] = False

    labels = np.repeat(
        np.asarray([*range(len(classes)), *(classes.index(name) for name in val_classes)], dtype=np.int32), found.counts
    )
    if val is None:
        fraction = _VAL_FRACTION if val_fraction is None else val_fraction
        in_val = _drawn(found.names, len(train) + 1 if train else 0, seed, fraction)
    else:
        in_val = np.arange(len(good)) >= found.counts[: len(classes)].sum()
    rows = {"train": np.flatnonzero(good & ~in_val), "val": np.flatnonzero(good & in_val)}
    if not len(rows["train"]) or (not len(rows["val"]) and val_fraction != 0):
        split = "val" if len(rows["train"]) else "train"
        raise ValueError(
            f"image_folder(): no image of '{path}' is in '{split}' ({len(found.names)} files, {len(broken)} of them "
            f"broken). {_broken_sentence(broken) if broken else _LAYOUT}"
            + ("" if val else " 'val_fraction' and 'seed' say how many go where.")
        )
    duplicates = _duplicates(found, rows["train"], rows["val"])
    found.save()
    dataset = ImageFolder(
        path=path,
        classes=classes,
        train=_files(found, rows["train"], labels, max_pixels),
        val=_files(found, rows["val"], labels, max_pixels),
        broken=broken,
        duplicates=duplicates,
    )
    for sentence in _warnings(dataset, found):
        warnings.warn(f"image_folder(): {sentence}", stacklevel=2)
    return dataset


def _layout(path: Path) -> tuple[str, str | None, tuple[str, ...]]:
    """The folder of training classes ("" for ``path`` itself), that of validation, and the classes."""
    if not path.exists():
        raise FileNotFoundError(f"image_folder(): 'path' is '{path}', which does not exist. {_LAYOUT}")
    if not path.is_dir():
        raise NotADirectoryError(f"image_folder(): 'path' is '{path}', which is a file. {_LAYOUT}")
    top = _subfolders(path)
    # A folder of that name without folders in it is a class: trains, perhaps.
    train = "train" if "train" in top and _subfolders(path / "train") else ""
    if not train and "val" in top and _subfolders(path / "val"):
        raise FileNotFoundError(f"image_folder(): '{path}' has a folder 'val' but no classes in 'train'. {_LAYOUT}")
    classes = _subfolders(path / train) if train else top
    if not classes:
        count = sum(1 for _ in path.iterdir())
        there = f"holds {count} files but no folders" if count else "is empty"
        raise FileNotFoundError(f"image_folder(): 'path' is '{path}', which {there}. {_LAYOUT}")
    if len(classes) == 1:
        raise ValueError(
            f"image_folder(): '{path / train}' has one class, '{classes[0]}'; a classifier needs two. {_LAYOUT}"
        )
    if not train or "val" not in top:
        return train, None, classes
    val = _subfolders(path / "val")
    if not val:
        count = sum(1 for _ in (path / "val").iterdir())
        raise FileNotFoundError(
            f"image_folder(): '{path / 'val'}' has {count} files but no class folders. Sort them into val/CLASS/, with "
            "the classes of 'train'; ImageNet's validation images come unsorted."
        )
    unknown = [name for name in val if name not in set(classes)]
    if unknown:
        raise ValueError(
            f"image_folder(): '{path / 'val'}' has {_some(unknown)} without a folder in '{path / 'train'}'. Every "
            "class in 'val' needs one of the same name in 'train'."
        )
    return train, "val", classes


def _subfolders(folder: Path) -> tuple[str, ...]:
    with os.scandir(folder) as entries:
        names = [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]
    return tuple(sorted(names, key=os.fsencode))


def _below(folder: str, name: str) -> str:
    return f"{folder}/{name}" if folder else name


def _problems(found: Scan, max_pixels: int) -> dict[int, str]:
    """Which files are left out, and why."""
    rows = found.rows
    problems = {int(i): found.problems[rows["problem"][i]] for i in np.flatnonzero(rows["problem"])}
    for i in np.flatnonzero(rows["width"].astype(np.int64) * rows["height"] > max_pixels):
        try:
            check_pixels(int(rows["width"][i]), int(rows["height"][i]), max_pixels)
        except ImageError as error:
            problems[int(i)] = str(error)
    return dict(sorted(problems.items()))


def _drawn(names: Sequence[bytes], skipped: int, seed: int, fraction: float) -> np.ndarray:
    """Whether each file is drawn for validation, by a hash of (seed, name without its first ``skipped`` bytes)."""
    prefix, limit = f"{seed}/".encode(), int(fraction * 2**64)
    return np.fromiter(
        (
            int.from_bytes(hashlib.blake2b(prefix + name[skipped:], digest_size=8).digest(), "little") < limit
            for name in names
        ),
        dtype=bool,
        count=len(names),
    )


def _duplicates(found: Scan, train: np.ndarray, val: np.ndarray) -> tuple[Duplicate, ...]:
    """Pairs with the same bytes; only files that have size, beginning and end in common are read whole."""
    key = (found.rows["size"].astype(np.uint64) << np.uint64(32)) | found.rows["ends"]
    train = train[_among(key[train], key[val])]
    val = val[_among(key[val], key[train])]
    if not len(val):
        return ()
    first = {digest: index for digest, index in zip(found.digest(train[::-1]), train[::-1], strict=True) if digest}
    return tuple(
        Duplicate(train=found.path(first[digest]), val=found.path(index))
        for digest, index in zip(found.digest(val), val, strict=True)
        if digest in first
    )


def _among(keys: np.ndarray, others: np.ndarray) -> np.ndarray:
    """Whether each key is one of the others; quick where those are few (numpy's own takes 3 s for a million)."""
    if not len(others):
        return np.zeros(len(keys), dtype=bool)
    others = np.sort(others)
    places = np.searchsorted(others, keys)
    return others[np.minimum(places, len(others) - 1)] == keys


def _files(found: Scan, indices: np.ndarray, labels: np.ndarray, max_pixels: int) -> ImageFiles:
    names = [found.names[i] for i in indices.tolist()]
    rows = found.rows[indices]
    return ImageFiles(
        root=Path(found.root),
        names=b"".join(names),
        ends=np.cumsum(np.fromiter(map(len, names), dtype=np.int64, count=len(names))),
        labels=labels[indices],
        widths=rows["width"].astype(np.int64),
        heights=rows["height"].astype(np.int64),
        file_sizes=rows["size"].copy(),
        max_pixels=max_pixels,
    )


def _warnings(dataset: ImageFolder, found: Scan) -> Iterator[str]:
    if dataset.broken:
        yield f"{_broken_sentence(dataset.broken)} They are left out; on_bad_image='raise' would stop here."
    counts = np.bincount(dataset.train.labels, minlength=len(dataset.classes))
    if not counts.all():
        empty = [name for name, count in zip(dataset.classes, counts, strict=True) if not count]
        yield f"{_some(empty)} without an image to train on; expected one or more. The labels count them all the same."
    for split, files in (("train", dataset.train), ("val", dataset.val)):
        small = np.flatnonzero(np.minimum(files.widths, files.heights) == 1)
        if len(small):
            names = ", ".join(f"'{files.path(i)}' ({files.widths[i]} x {files.heights[i]})" for i in small[:_NAMED])
            yield f"{len(small)} images in '{split}' are one pixel wide or high: {names}. They stay in; are they meant?"
    if found.subfolders:
        names = ", ".join(f"'{Path(found.root, name)}'" for name in found.subfolders[:_NAMED])
        yield f"{len(found.subfolders)} folders inside class folders are not read: {names}. Move their images up."
    if dataset.duplicates:
        pairs = ", ".join(f"'{pair.val}' = '{pair.train}'" for pair in dataset.duplicates[:_NAMED])
        yield (
            f"{len(dataset.duplicates)} validation images are also training images, byte for byte, which flatters the "
            f"accuracy: {pairs}. Remove one of each; all stand in .duplicates."
        )


def _broken_sentence(broken: Sequence[BrokenImage]) -> str:
    more = "" if len(broken) <= _NAMED else f"; and {len(broken) - _NAMED} more, all in .broken"
    named = "; ".join(f"'{image.path}': {image.problem.rstrip('.')}" for image in broken[:_NAMED])
    return f"{len(broken)} {'file is' if len(broken) == 1 else 'files are'} no usable image: {named}{more}."


def _some(classes: Sequence[str]) -> str:
    more = f" and {len(classes) - _NAMED} more" if len(classes) > _NAMED else ""
    return f"the class{'' if len(classes) == 1 else 'es'} {', '.join(map(repr, classes[:_NAMED]))}{more}"
