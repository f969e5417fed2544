"""Writing packs: a folder's images, scaled down where asked for, one behind the other in few large files."""

from __future__ import annotations

import hashlib
import os
import secrets
import shutil
import struct
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
import simplejpeg
from PIL import Image

from theano_mgpu.data.folders import BrokenImage, ImageFolder, image_folder
from theano_mgpu.data.image_files import ImageFiles
from theano_mgpu.data.packs import PACK_INDEX, PACK_VERSION, Packed, array_record, packed, shard_name
from theano_mgpu.data.progress_bar import progress_bar
from theano_mgpu.data.texts import joined_texts
from theano_mgpu.errors import ImageError
from theano_mgpu.weights import flush

__all__ = ["pack"]

# One record a chunk, so that a record is read alone; the images are compressed already.
_WRITER = "group_size:1,uncompressed"
_LARGEST_JPEG = 65_500  # pixels a side, libjpeg's limit
_NAMED = 20  # files that a message names


def pack(
    source: str | Path | ImageFolder,
    out: str | Path,
    *,
    shorter_side: int | None = None,
    quality: int = 90,
    shard_size: int = 1024**3,
    on_bad_image: Literal["skip", "raise"] = "skip",
    progress: bool | None = None,
    threads: int | None = None,
) -> Packed:
    """Write the images of a folder as a pack, which ``packed`` opens: few large files in place of many small ones.

    Parameters:
        source: a folder as ``image_folder`` takes it, or what that found.
        out: the pack's folder, made here; it may exist if it is empty.
        shorter_side: pixels. An image whose shorter side is longer is scaled to it (bilinear, antialiased) and written
            as a JPEG, upright and RGB. Other images, and all of them without it, keep their file's bytes: what is
            trained on then has the same bits as from the folder.
        quality: of those JPEGs, 1 to 100; their colours have half the resolution (4:2:0), as cameras' have.
        shard_size: bytes, after which a new file is begun.
        on_bad_image: what to do with files that the scan passed but that cannot be read or scaled: "skip" leaves them
            out, naming them in a warning and in ``.broken``; "raise" ends in an ImageError.
        progress: whether to show a bar on standard error; None, if that is a terminal.
        threads: that read and scale; as many as there are cores if None.

    The order of the examples is the folder's, and so are labels and splits. The pack is written aside and renamed when
    it is whole: whatever fails, nothing of it is left.

    Raises FileExistsError where ``out`` is a file or a folder with something in it, OSError where it cannot be written
    or the disk is full, ValueError for an argument out of range, what ``image_folder`` raises, and ImportError where
    array_record is not installed.
    """
    out = Path(out).absolute()
    _check("shorter_side", shorter_side, optional=True)
    _check("quality", quality, largest=100)
    _check("shard_size", shard_size)
    _check("threads", threads, optional=True)
    if on_bad_image not in ("skip", "raise"):
        raise ValueError(f"pack(): 'on_bad_image' must be 'skip' or 'raise', got {on_bad_image!r}.")
    array_record()
    _check_target(out)
    if not isinstance(source, ImageFolder):
        source = image_folder(source, on_bad_image=on_bad_image, progress=progress)
    if out.is_relative_to(source.path.absolute()):
        raise ValueError(f"pack(): 'out' is '{out}', inside of what is packed, where it may pass for a class.")

    aside = out.with_name(f".{out.name}.{secrets.token_hex(4)}.partial")
    try:
        aside.mkdir(parents=True)
        broken = _write(source, aside, _Scaling(shorter_side, quality), shard_size, on_bad_image, progress, threads)
        os.replace(aside, out)
        flush(out.parent)
    except OSError as error:
        raise type(error)(
            f"pack(): '{out}' could not be written ({error.strerror or error}). Nothing of it is left; name a folder "
            "that can be written, with room for the images."
        ) from error
    finally:
        shutil.rmtree(aside, ignore_errors=True)
    if broken:
        named = "; ".join(f"'{image.path}': {image.problem}" for image in broken[:_NAMED])
        warnings.warn(f"pack(): {len(broken)} images were left out, all named in .broken: {named}.", stacklevel=2)
    return packed(out)


@dataclass(frozen=True)
class _Scaling:
    """What becomes of one image."""

    shorter_side: int | None
    quality: int

    def __call__(self, files: ImageFiles, index: int) -> tuple[bytes, int, int]:
        """Bytes, width and height. Raises ImageError, naming the file."""
        width, height = int(files.widths[index]), int(files.heights[index])
        shorter = min(width, height)
        if self.shorter_side is None or shorter <= self.shorter_side:
            return files.bytes(index), width, height
        size = (max(1, width * self.shorter_side // shorter), max(1, height * self.shorter_side // shorter))
        if max(size) > _LARGEST_JPEG:
            return files.bytes(index), width, height
        image = Image.fromarray(files.read(index)).resize(size, Image.Resampling.BILINEAR)
        content = simplejpeg.encode_jpeg(
            np.asarray(image), quality=self.quality, colorspace="RGB", colorsubsampling="420"
        )
        return content, *size


@dataclass
class _Shards:
    """The files of one split, the last of which is being written."""

    folder: Path
    split: str
    size: int
    ends: list[int] = field(default_factory=list)
    written: int = 0  # examples
    filled: int = 0  # bytes in the last file
    writer: Any = None

    def write(self, content: bytes) -> None:
        if self.writer is not None and self.filled + len(content) > self.size:
            self.close()
        with _DiskErrors():
            if self.writer is None:
                self.writer = array_record().ArrayRecordWriter(str(self._path(len(self.ends))), _WRITER)
                self.filled = 0
            self.writer.write(content)
        self.filled += len(content)
        self.written += 1

    def close(self) -> None:
        if self.writer is None:
            return
        writer, self.writer = self.writer, None
        with _DiskErrors():
            writer.close()
        flush(self._path(len(self.ends)))
        self.ends.append(self.written)

    def sizes(self) -> list[int]:
        return [self._path(number).stat().st_size for number in range(len(self.ends))]

    def _path(self, number: int) -> Path:
        return self.folder / shard_name(self.split, number)


class _DiskErrors:
    """A full disk is an OSError elsewhere; of ArrayRecord it is a RuntimeError with the same words."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: object, error: BaseException | None, traceback: object) -> None:
        if isinstance(error, RuntimeError):
            raise OSError(str(error)) from error


def _write(
    source: ImageFolder,
    folder: Path,
    scaling: _Scaling,
    shard_size: int,
    on_bad_image: str,
    progress: bool | None,
    threads: int | None,
) -> list[BrokenImage]:
    """Shards and index; what was left out beside the scan's own."""
    broken: list[BrokenImage] = []
    checksum = hashlib.blake2b(digest_size=16)
    arrays: dict[str, Any] = {}
    with progress_bar(progress) as bar:
        task = bar.add_task("packing images", total=len(source.train) + len(source.val))
        for split, files in (("train", source.train), ("val", source.val)):
            shards, rows = _Shards(folder, split, shard_size), []
            with _in_order(partial(scaling, files), len(files), threads) as results:
                for index, result in enumerate(results):
                    bar.advance(task)
                    try:
                        content, width, height = result()
                    except ImageError as error:
                        if on_bad_image == "raise":
                            raise ImageError(f"pack(): {error} Remove it, or give on_bad_image='skip'.") from error
                        problem = str(error).removeprefix(f"'{files.path(index)}'").lstrip(": ")
                        broken.append(BrokenImage(files.path(index), problem))
                        continue
                    shards.write(content)
                    checksum.update(struct.pack("<Qi", len(content), files.labels[index]))
                    checksum.update(content)
                    rows.append((index, width, height, len(content)))
            shards.close()
            arrays |= {f"{split}.{name}": array for name, array in _columns(files, shards, rows).items()}
    classes = joined_texts(map(os.fsencode, source.classes))
    checksum.update(classes.tobytes())
    left_out = [*source.broken, *broken]
    pairs = [os.fsencode(path) for pair in source.duplicates for path in (pair.train, pair.val)]
    index_file = folder / PACK_INDEX
    np.savez(
        index_file,
        version=np.int64(PACK_VERSION),
        classes=classes,
        broken=joined_texts(os.fsencode(image.path) for image in left_out),
        problems=joined_texts(image.problem.encode("utf-8", "replace") for image in left_out),
        duplicates=joined_texts(pairs),
        shorter_side=np.int64(scaling.shorter_side or 0),
        max_pixels=np.int64(source.train.max_pixels),
        checksum=np.str_(checksum.hexdigest()),
        **arrays,
    )
    flush(index_file)
    flush(folder)
    return broken


def _columns(files: ImageFiles, shards: _Shards, rows: list[tuple[int, int, int, int]]) -> dict[str, np.ndarray]:
    index, widths, heights, sizes = np.asarray(rows, dtype=np.int64).reshape(-1, 4).T
    names = [os.fsencode(files.name(i)) for i in index.tolist()]
    return {
        "names": np.frombuffer(b"".join(names), dtype=np.uint8),
        "ends": np.cumsum(np.fromiter(map(len, names), dtype=np.int64, count=len(names))),
        "labels": files.labels[index],
        "widths": widths.astype(np.uint32),
        "heights": heights.astype(np.uint32),
        "file_sizes": sizes,
        "shard_ends": np.asarray(shards.ends, dtype=np.int64),
        "shard_bytes": np.asarray(shards.sizes(), dtype=np.int64),
    }


@contextmanager
def _in_order(work: Callable[[int], Any], count: int, threads: int | None) -> Iterator[Iterator[Callable[[], Any]]]:
    """Of each index in order a call that gives the result or raises; threads are a few images ahead."""
    threads = threads or _cores()
    with ThreadPoolExecutor(threads) as pool:

        def results() -> Iterator[Callable[[], Any]]:
            waiting: deque[Future] = deque()
            for index in range(count):
                waiting.append(pool.submit(work, index))
                if len(waiting) > 4 * threads:
                    yield waiting.popleft().result
            while waiting:
                yield waiting.popleft().result

        try:
            yield results()
        finally:
            pool.shutdown(wait=False, cancel_futures=True)


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _check_target(out: Path) -> None:
    if out.is_dir() and not any(out.iterdir()):
        return
    if out.exists() or out.is_symlink():
        raise FileExistsError(
            f"pack(): 'out' is '{out}', which exists already{' and is not empty' if out.is_dir() else ''}. "
            "Name another folder, or remove it."
        )


def _check(argument: str, value: Any, *, largest: int | None = None, optional: bool = False) -> None:
    if optional and value is None:
        return
    is_number = isinstance(value, (int, np.integer)) and not isinstance(value, bool)
    if not is_number or value < 1 or (largest is not None and value > largest):
        expected = "an integer of at least 1" if largest is None else f"an integer from 1 to {largest}"
        raise ValueError(f"pack(): '{argument}' should be {expected}, not {value!r}.")
