"""Packs: the images of a folder in few large files, for disks on which many small ones are slow.

``pack.npz`` has the classes, and of each split names, labels and sizes; the images' bytes are ArrayRecord files, which
grain and others read too, a record an image, in the same order.
"""

from __future__ import annotations

import os
import threading
import zipfile
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from theano_mgpu.data.folders import BrokenImage, Duplicate
from theano_mgpu.data.image_files import ImageFiles
from theano_mgpu.data.table import folder_table
from theano_mgpu.data.texts import split_texts
from theano_mgpu.errors import ImageError

__all__ = [
    "PACK_INDEX",
    "PACK_VERSION",
    "Packed",
    "PackedImages",
    "array_record",
    "is_pack",
    "packed",
    "shard_name",
]

#: The file that makes a folder a pack.
PACK_INDEX = "pack.npz"
#: Of the index; a newer one is refused.
PACK_VERSION = 1
_SPLITS = ("train", "val")
# For reading records one by one, in any order; the defaults read 16 MB ahead.
_READER = {"options": "readahead_buffer_size:0,max_parallelism:0", "file_reader_buffer_size": 32 * 1024}


@dataclass(frozen=True, eq=False, kw_only=True)
class PackedImages(ImageFiles):
    """The examples of one split, in the order of the folder that was packed; read as those of ``ImageFiles`` are.

    Names, and paths below ``root``, are those of the files that were packed: there are none by these names in the pack.
    It travels to other processes, each of which opens the pack's files by itself when it first reads.
    """

    shards: tuple[str, ...]
    shard_ends: np.ndarray  # the example behind each shard's last
    _readers: _Readers = field(default_factory=lambda: _Readers(), repr=False)

    def bytes(self, index: int) -> bytes:
        """The image file's content. Raises ImageError, naming image and shard, if that is gone or damaged there."""
        index = range(len(self))[index]
        shard = int(np.searchsorted(self.shard_ends, index, side="right"))
        path = self.root / self.shards[shard]
        try:
            return self._readers.read(path, index - (int(self.shard_ends[shard - 1]) if shard else 0))
        except RuntimeError as error:
            raise ImageError(
                f"'{self.path(index)}' cannot be read, as its shard '{path}' is gone or damaged ({error}). Copy the "
                "shard again from where the pack came, or pack the folder again."
            ) from error


@dataclass(frozen=True, eq=False)
class Packed:
    """What ``packed`` found: an ``ImageFolder`` in few files. Printed, it is a table of classes and counts.

    ``broken`` were left out when it was packed; ``shorter_side`` is what larger images were scaled to, None for no
    scaling. ``checksum`` is of all images' bytes and labels, in order, and of the classes.
    """

    path: Path
    classes: tuple[str, ...]
    train: PackedImages
    val: PackedImages
    broken: tuple[BrokenImage, ...]
    duplicates: tuple[Duplicate, ...]
    shorter_side: int | None
    checksum: str

    def __str__(self) -> str:
        return folder_table(self)


def is_pack(path: str | Path) -> bool:
    """Whether a folder holds what ``pack`` writes."""
    return (Path(path) / PACK_INDEX).is_file()


def packed(path: str | Path) -> Packed:
    """Open what ``pack`` wrote: the index is read, the images not yet.

    Raises FileNotFoundError where there is no pack, or a shard is missing; ValueError for an index that is damaged or
    of a newer version, and for a shard of another size, naming it. Damage inside a shard shows when it is read.
    """
    path = Path(path)
    index = path / PACK_INDEX
    if not index.is_file():
        there = "does not exist" if not path.exists() else f"has no '{PACK_INDEX}'"
        raise FileNotFoundError(f"packed(): '{path}' {there}. tm.data.pack(folder, '{path}') would write a pack there.")
    try:
        # Opened here: of a damaged one np.load would leave the file open.
        with index.open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            version = int(file["version"])
            arrays = dict(file) if version <= PACK_VERSION else {}
    except (ValueError, KeyError, EOFError, TypeError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"packed(): '{index}' is damaged ({error}). Copy it again, or pack the folder again."
        ) from error
    if version > PACK_VERSION:
        raise ValueError(
            f"packed(): '{index}' is of format {version}, and this version of theano_mgpu reads formats up to "
            f"{PACK_VERSION}. Take a newer one, or pack the folder again."
        )
    try:
        return _opened(path, arrays)
    except KeyError as error:
        raise ValueError(f"packed(): '{index}' has no {error}; pack the folder again.") from error


def array_record() -> Any:
    """The module that reads and writes ArrayRecord files. Raises ImportError, saying where there is none."""
    try:
        from array_record.python import array_record_module
    except ImportError as error:
        raise ImportError(
            "Packs need the package array_record, which is published for Linux (x86-64, ARM64) and macOS (ARM64). "
            "Install it where it is, or train from the folder of images."
        ) from error
    return array_record_module


def shard_name(split: str, number: int) -> str:
    """The file of a split's shard."""
    return f"{split}-{number:05d}.array_record"


def _opened(path: Path, arrays: dict[str, np.ndarray]) -> Packed:
    splits = {}
    for split in _SPLITS:
        own = {name.removeprefix(f"{split}."): array for name, array in arrays.items() if name.startswith(f"{split}.")}
        shards = tuple(shard_name(split, number) for number in range(len(own["shard_ends"])))
        for shard, size in zip(shards, own["shard_bytes"].tolist(), strict=True):
            _check_shard(path / shard, size)
        splits[split] = PackedImages(
            root=path,
            names=own["names"].tobytes(),
            ends=own["ends"],
            labels=own["labels"],
            widths=own["widths"].astype(np.int64),
            heights=own["heights"].astype(np.int64),
            file_sizes=own["file_sizes"],
            shards=shards,
            shard_ends=own["shard_ends"],
            max_pixels=int(arrays["max_pixels"]),
        )
    names, problems, pairs, classes = (
        [os.fsdecode(text) for text in split_texts(arrays[name])]
        for name in ("broken", "problems", "duplicates", "classes")
    )
    return Packed(
        path=path,
        classes=tuple(classes),
        train=splits["train"],
        val=splits["val"],
        broken=tuple(BrokenImage(Path(name), problem) for name, problem in zip(names, problems, strict=True)),
        duplicates=tuple(Duplicate(Path(train), Path(val)) for train, val in zip(pairs[::2], pairs[1::2], strict=True)),
        shorter_side=int(arrays["shorter_side"]) or None,
        checksum=str(arrays["checksum"]),
    )


def _check_shard(path: Path, size: int) -> None:
    try:
        found = path.stat().st_size
    except FileNotFoundError:
        raise FileNotFoundError(
            f"packed(): the shard '{path}' is missing. Copy it again from where the pack came, or pack the "
            "folder again."
        ) from None
    if found != size:
        raise ValueError(
            f"packed(): the shard '{path}' has {found} bytes, where {size} were written. Copy it again from where the "
            "pack came, or pack the folder again."
        )


class _Readers:
    """Open files, for one process; a copy in another one opens its own."""

    def __init__(self) -> None:
        self.process = os.getpid()
        self.opened: dict[Path, Any] = {}
        self.lock = threading.Lock()

    def read(self, path: Path, position: int) -> bytes:
        """Raises RuntimeError for a file that is gone or damaged."""
        if self.process != os.getpid():
            self.__init__()  # type: ignore[misc]  # after a fork
        with self.lock:
            reader = self.opened.get(path)
            if reader is None:
                reader = self.opened[path] = array_record().ArrayRecordReader(str(path), **_READER)
        return reader.read([position])[0]

    def __reduce__(self) -> tuple[type[_Readers], tuple[()]]:
        return _Readers, ()
