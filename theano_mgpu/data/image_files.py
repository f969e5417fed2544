"""The examples of one split: where their files are, their labels and sizes; a file is read when it is asked for."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from theano_mgpu.data.decoding import MAX_PIXELS, decode
from theano_mgpu.errors import ImageError

__all__ = ["ImageFile", "ImageFiles"]


@dataclass(frozen=True)
class ImageFile:
    """One example that was not read yet."""

    path: Path
    label: int


@dataclass(frozen=True, eq=False)
class ImageFiles(Sequence[ImageFile]):
    """The examples of one split, class by class, in the order of their names.

    ``labels`` int32 ``(n,)``; ``widths`` and ``heights`` in pixels, as displayed, and ``file_sizes`` in bytes, int64
    ``(n,)``. Names are kept in one piece of memory, which worker processes share, where a list of a million strings
    would be copied page by page as its reference counts change.
    """

    root: Path
    names: bytes  # relative to root, as the file system has them, one behind the other
    ends: np.ndarray  # where each name ends
    labels: np.ndarray
    widths: np.ndarray
    heights: np.ndarray
    file_sizes: np.ndarray
    max_pixels: int = MAX_PIXELS

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: int) -> ImageFile:  # type: ignore[override]
        """Raises IndexError out of range, TypeError for a slice."""
        return ImageFile(self.path(index), int(self.labels[index]))

    def name(self, index: int) -> str:
        """The path relative to ``root``."""
        index = range(len(self))[index]
        start = self.ends[index - 1] if index else 0
        return os.fsdecode(self.names[start : self.ends[index]])

    def path(self, index: int) -> Path:
        return self.root / self.name(index)

    def bytes(self, index: int) -> bytes:
        """The file's content. Raises ImageError, naming the file, if it cannot be read."""
        path = os.path.join(self.root, self.name(index))  # a Path takes longer to make than the file to open
        try:
            with open(path, "rb", buffering=0) as file:
                return file.read()
        except OSError as error:
            raise ImageError(f"'{path}' cannot be read ({error.strerror}).") from error

    def read(
        self, index: int, *, min_width: int | None = None, min_height: int | None = None, fast: bool = False
    ) -> np.ndarray:
        """The pixels, uint8 ``(height, width, 3)``, as ``tm.data.decode`` has them.

        Raises ImageError, naming the file: a scan finds files that are cut off, but not every other damage.
        """
        content = self.bytes(index)
        try:
            return decode(content, min_width=min_width, min_height=min_height, fast=fast, max_pixels=self.max_pixels)
        except ImageError as error:
            raise ImageError(f"'{self.path(index)}': {error}") from error
