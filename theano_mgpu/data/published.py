"""Readers for small published data sets, whole into memory: CIFAR-10 and 100, MNIST, and scikit-learn's digits."""

from __future__ import annotations

import gzip
import math
import zlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from theano_mgpu.data.in_memory import Examples

__all__ = ["Splits", "cifar10", "cifar100", "digits", "mnist"]

_CIFAR_PIXELS = 3 * 32 * 32


@dataclass(frozen=True)
class Splits:
    """A data set in memory; a label is a place in ``classes``."""

    train: Examples
    val: Examples
    classes: tuple[str, ...]


def cifar10(folder: str | Path) -> Splits:
    """CIFAR-10's binary version.

    ``folder`` holds ``data_batch_1.bin`` to ``data_batch_5.bin``, ``test_batch.bin`` and ``batches.meta.txt``, or
    holds the archive's ``cifar-10-batches-bin``. Images are uint8 ``(n, 32, 32, 3)``, RGB.
    Raises FileNotFoundError naming a file that is missing, ValueError for one of another format.

    Format: Krizhevsky, "Learning multiple layers of features from tiny images", 2009, and the data set's page: records
    of one byte of label and 3072 of pixels, the red plane row by row, then green, then blue.
    """
    folder = _found("cifar10", folder, "cifar-10-batches-bin", "test_batch.bin")
    classes = _class_names(folder / "batches.meta.txt", "cifar10", 10)
    train = [_cifar(folder / f"data_batch_{number}.bin", "cifar10", 1, 10) for number in range(1, 6)]
    return Splits(_joined(train), _cifar(folder / "test_batch.bin", "cifar10", 1, 10), classes)


def cifar100(folder: str | Path) -> Splits:
    """CIFAR-100's binary version, with its 100 fine labels: ``train.bin``, ``test.bin``, ``fine_label_names.txt``.

    ``folder`` holds them, or holds the archive's ``cifar-100-binary``. Images, errors and format are as of ``cifar10``;
    in a record the byte of the coarse label, which is left out, stands before that of the fine one.
    """
    folder = _found("cifar100", folder, "cifar-100-binary", "test.bin")
    classes = _class_names(folder / "fine_label_names.txt", "cifar100", 100)
    train, val = (_cifar(folder / name, "cifar100", 2, 100) for name in ("train.bin", "test.bin"))
    return Splits(train, val, classes)


def mnist(folder: str | Path) -> Splits:
    """MNIST, or a data set in its files (Fashion-MNIST, KMNIST): four IDX files, also ``.gz``.

    They are ``train-images-idx3-ubyte``, ``train-labels-idx1-ubyte``, ``t10k-images-idx3-ubyte`` and
    ``t10k-labels-idx1-ubyte``. Images are uint8 ``(n, 28, 28, 3)`` with three equal channels; classes are "0" to "9".
    Raises FileNotFoundError naming a file that is missing, ValueError for one of another format.

    Format: LeCun, Cortes and Burges, "The MNIST database of handwritten digits": two zero bytes, 8 for unsigned bytes,
    the number of axes, each axis' length as a big-endian 32-bit integer, the data in C order.
    """
    splits = []
    for split in ("train", "t10k"):
        images = _idx(Path(folder) / f"{split}-images-idx3-ubyte", 3)
        labels = _idx(Path(folder) / f"{split}-labels-idx1-ubyte", 1)
        if len(images) != len(labels):
            raise ValueError(f"mnist(): '{folder}' has {len(images)} images but {len(labels)} labels in '{split}'.")
        _check_labels(labels, 10, "mnist", Path(folder) / f"{split}-labels-idx1-ubyte")
        splits.append(Examples(_grey(images), labels.astype(np.int32)))
    return Splits(splits[0], splits[1], classes=tuple("0123456789"))


def digits(*, val_fraction: float = 0.2, seed: int = 0) -> Splits:
    """scikit-learn's handwritten digits: 1,797 images of 8 x 8 pixels, drawn by ``seed`` into two splits.

    Images are uint8 ``(n, 8, 8, 3)`` with three equal channels, 0 to 255 where scikit-learn has 0 to 16.
    Raises ValueError if ``val_fraction`` leaves one split empty.

    Alpaydin and Kaynak, "Optical recognition of handwritten digits", UCI Machine Learning Repository, 1998.
    """
    # scikit-learn's import takes a second, and nothing else in this module needs it.
    from sklearn.datasets import load_digits

    data = load_digits()
    count = round(val_fraction * len(data.target))
    if not 0 < count < len(data.target):
        raise ValueError(f"digits(): 'val_fraction' must be between 0 and 1, neither split empty, got {val_fraction}.")
    order = np.random.default_rng(seed).permutation(len(data.target))
    images, labels = _grey(np.round(data.images * (255 / 16)).astype(np.uint8)), data.target.astype(np.int32)
    train, val = (Examples(images[rows], labels[rows]) for rows in (order[count:], order[:count]))
    return Splits(train, val, classes=tuple("0123456789"))


def _found(function: str, folder: str | Path, below: str, file: str) -> Path:
    """``folder`` or the archive's folder below it, wherever ``file`` is."""
    for place in (Path(folder), Path(folder) / below):
        if (place / file).is_file():
            return place
    raise FileNotFoundError(
        f"{function}(): neither '{folder}' nor '{Path(folder) / below}' has '{file}'. Expected the folder of the "
        "unpacked archive, of the version for C programs (binary)."
    )


def _content(path: Path, function: str) -> bytes:
    if not path.is_file():
        raise FileNotFoundError(f"{function}(): '{path}' is missing. Expected the whole data set in one folder.")
    return path.read_bytes()


def _cifar(path: Path, function: str, label_bytes: int, classes: int) -> Examples:
    content = np.frombuffer(_content(path, function), dtype=np.uint8)
    record = label_bytes + _CIFAR_PIXELS
    if not len(content) or len(content) % record:
        raise ValueError(
            f"{function}(): '{path}' has {len(content):,} bytes; expected a multiple of {record:,}, a record's. Is the "
            "download whole, and of the binary version?"
        )
    records = content.reshape(-1, record)
    labels = records[:, label_bytes - 1]
    _check_labels(labels, classes, function, path)
    images = records[:, label_bytes:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)
    return Examples(np.ascontiguousarray(images), labels.astype(np.int32))


def _idx(path: Path, axes: int) -> np.ndarray:
    packed = path.with_name(path.name + ".gz")
    if not path.is_file() and packed.is_file():
        path = packed
    content = _content(path, "mnist")
    if path.suffix == ".gz":
        try:
            content = gzip.decompress(content)
        except (OSError, EOFError, zlib.error) as error:
            raise ValueError(f"mnist(): '{path}' cannot be unpacked ({error}). Is the download whole?") from error
    start = 4 + 4 * axes
    if len(content) < start or content[:4] != bytes((0, 0, 8, axes)):
        raise ValueError(
            f"mnist(): '{path}' begins with {content[:4]!r}; expected an IDX file of unsigned bytes with {axes} axes, "
            f"{bytes((0, 0, 8, axes))!r}."
        )
    shape = tuple(int(length) for length in np.frombuffer(content[4:start], dtype=">u4"))
    if len(content) - start != math.prod(shape):
        raise ValueError(
            f"mnist(): '{path}' has {len(content) - start:,} bytes of data; expected {math.prod(shape):,} for {shape}. "
            "Is the download whole?"
        )
    return np.frombuffer(content, dtype=np.uint8, offset=start).reshape(shape)


def _check_labels(labels: np.ndarray, classes: int, function: str, path: Path) -> None:
    if labels.max(initial=0) >= classes:
        raise ValueError(
            f"{function}(): '{path}' has label {labels.max()}; expected 0 to {classes - 1}. Is it another data set's?"
        )


def _class_names(path: Path, function: str, count: int) -> tuple[str, ...]:
    names = tuple(line.strip() for line in _content(path, function).decode().splitlines() if line.strip())
    if len(names) != count:
        raise ValueError(f"{function}(): '{path}' has {len(names)} names of classes; expected {count}.")
    return names


def _joined(parts: Sequence[Examples]) -> Examples:
    return Examples(np.concatenate([p.images for p in parts]), np.concatenate([p.labels for p in parts]))


def _grey(images: np.ndarray) -> np.ndarray:
    return np.repeat(images[..., None], 3, axis=-1)
