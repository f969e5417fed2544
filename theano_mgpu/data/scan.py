"""The files of an image folder: which there are, how large their images are, and which are broken.

Every file's beginning and end are read once. What was found is kept in the user's cache, one file a data set, and taken
again for files whose modification time and size are the same.
"""

from __future__ import annotations

import hashlib
import os
import stat
import tempfile
import time
import warnings
import zipfile
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from rich.progress import Progress

from theano_mgpu.data.decoding import MAX_PIXELS, decode, image_size, looks_whole
from theano_mgpu.data.progress_bar import progress_bar
from theano_mgpu.data.texts import joined_texts, split_texts
from theano_mgpu.errors import ImageError
from theano_mgpu.user_cache import user_cache

__all__ = ["Scan", "cache_file", "scan"]

_VERSION = 1  # of the cache and of what counts as broken; another one is scanned again
_HEAD, _TAIL = 16 * 1024, 64  # bytes: a JPEG's size mostly stands in the first 16 KiB, behind EXIF with a thumbnail
_THREADS = 8  # they wait for the disk; parsing holds the GIL
_CHUNK = 256  # files that a thread takes at a time
_SLOW = 50e-6  # seconds a file; a disk takes more, memory 5

#: What is known of one file; ``mtime`` -1 for one that is not to be taken from the cache.
_ROW = np.dtype(
    [
        ("size", "<i8"),  # bytes
        ("mtime", "<i8"),  # nanoseconds
        ("width", "<u4"),  # pixels, as displayed; 0 for a broken file
        ("height", "<u4"),
        ("ends", "<u4"),  # CRC-32 of the file's beginning and end
        ("digest", "<u8"),  # of all its bytes; 0 where nobody asked yet
        ("problem", "<u4"),  # a place in the list of problems; 0 for none
    ]
)


#: Of one folder: names of files, sorted, their rows, and names of folders.
_Listing = tuple[list[bytes], np.ndarray, list[str]]


@dataclass(eq=False)
class Scan:
    """The files of some folders: ``names`` relative to ``root``, folder by folder and sorted in each."""

    root: str
    folders: tuple[str, ...]
    counts: np.ndarray  # files in each folder
    names: list[bytes]
    rows: np.ndarray
    problems: list[str]
    subfolders: list[str] = field(default_factory=list)
    changed: bool = False

    def path(self, index: int) -> Path:
        return Path(self.root, os.fsdecode(self.names[index]))

    def digest(self, indices: Iterable[int]) -> np.ndarray:
        """A hash of all bytes of each of these files, read where it is not known; uint64, 0 for one that cannot be."""
        indices = np.fromiter(indices, dtype=np.int64)
        for index in indices[self.rows["digest"][indices] == 0]:
            try:
                content = self.path(index).read_bytes()
            except OSError:
                continue
            self.rows["digest"][index] = max(_hash(content), 1)
            self.changed = True
        return self.rows["digest"][indices]

    def save(self) -> None:
        """Keep what was found for the next scan. A cache that cannot be written is warned of, and costs time only."""
        if not self.changed:
            return
        path = cache_file(self.root)
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryDirectory(dir=path.parent, prefix=".scan.") as scratch:
                whole = Path(scratch) / path.name
                with whole.open("wb") as file:
                    np.savez(
                        file,
                        version=np.int64(_VERSION),
                        folders=joined_texts(os.fsencode(folder) for folder in self.folders),
                        counts=self.counts,
                        names=joined_texts(name.rpartition(b"/")[2] for name in self.names),
                        rows=self.rows,
                        problems=joined_texts(problem.encode("utf-8", "replace") for problem in self.problems),
                    )
                os.replace(whole, path)
        except OSError as error:
            warnings.warn(
                f"image_folder(): the scan of '{self.root}' could not be kept in '{path}' ({error.strerror}), so the "
                "next one takes as long. XDG_CACHE_HOME names another folder for it.",
                stacklevel=3,
            )


def cache_file(root: str | Path) -> Path:
    """Where the scan of a folder is kept; the data set's own folder is often shared, or not to be written to."""
    name = hashlib.blake2b(os.fsencode(os.path.realpath(root)), digest_size=12).hexdigest()
    return user_cache() / f"scan-{name}.npz"


def scan(root: str | Path, folders: Sequence[str], *, progress: bool | None = None) -> Scan:
    """List every file in ``folders`` (relative to ``root``, not below them) and look into new and changed ones.

    Names that begin with a dot are passed over. ``progress`` shows a bar on standard error; None, if it is a terminal.
    Stopped half way, it keeps what it has seen.
    """
    root = str(root)
    cache = _load(root)
    with progress_bar(progress) as bar, _threads() as pool:
        names: list[bytes] = []
        parts, problems = [], list(cache.problems)
        subfolders: list[str] = []
        task = bar.add_task("listing folders", total=len(folders))
        for folder, (own, rows, below) in zip(folders, _listed(root, folders, pool), strict=True):
            cache.fill(folder, own, rows)
            prefix = os.fsencode(folder) + b"/"
            names += [prefix + name for name in own]
            parts.append(rows)
            subfolders += [f"{folder}/{name}" for name in below]
            bar.advance(task)
        found = Scan(
            root=root,
            folders=tuple(folders),
            counts=np.asarray([len(rows) for rows in parts], dtype=np.int64),
            names=names,
            rows=np.concatenate([np.empty(0, _ROW), *parts]),
            problems=problems,
            subfolders=subfolders,
        )
        found.changed = len(found.rows) != len(cache.rows)
        try:
            _look_into(found, pool.map, bar)
        except BaseException:
            found.save()
            raise
    return found


def _listed(root: str, folders: Sequence[str], pool: ThreadPoolExecutor) -> Iterator[_Listing]:
    """Each folder's files, by one thread as long as the file system answers from memory, where more only get in each
    other's way: 1.33 million files took 7 s so, and 14 s with eight."""
    for number, folder in enumerate(folders):
        begun = time.perf_counter()
        listing = _list(os.path.join(root, folder))
        seconds = time.perf_counter() - begun
        yield listing
        if seconds > _SLOW * (len(listing[0]) + 10):
            yield from pool.map(lambda folder: _list(os.path.join(root, folder)), folders[number + 1 :])
            return


def _list(folder: str) -> _Listing:
    """Names of files, sorted, their rows with size and mtime, and names of folders."""
    files, below = [], []
    with os.scandir(os.fsencode(folder)) as entries:
        for entry in entries:
            if entry.name.startswith(b"."):
                continue
            try:
                status = entry.stat()
            except OSError:  # a link to nothing: looked into like a new file, which says so
                files.append((entry.name, 0, -1))
                continue
            if stat.S_ISDIR(status.st_mode):
                below.append(os.fsdecode(entry.name))
            else:
                files.append((entry.name, status.st_size, status.st_mtime_ns))
    files.sort()
    rows = np.zeros(len(files), _ROW)
    rows["size"] = [size for _, size, _ in files]
    rows["mtime"] = [mtime for _, _, mtime in files]
    return [name for name, _, _ in files], rows, below


def _look_into(found: Scan, threads: Callable, bar: Progress) -> None:
    """Fill the rows of the files that the cache did not know, which have neither a width nor a problem."""
    rows = found.rows
    new = np.flatnonzero((rows["width"] == 0) & (rows["problem"] == 0))
    if not len(new):
        return
    mtimes = rows["mtime"][new]
    rows["mtime"][new] = -1  # not to be taken from the cache before it was looked into
    places = {problem: place for place, problem in enumerate(found.problems)}
    task = bar.add_task("looking into files", total=len(new))
    chunks = [new[start : start + _CHUNK] for start in range(0, len(new), _CHUNK)]

    def look(chunk: np.ndarray) -> list[tuple[int, int, int, str, bool]]:
        return [_look(os.path.join(os.fsencode(found.root), found.names[i]), int(rows["size"][i])) for i in chunk]

    for number, (chunk, results) in enumerate(zip(chunks, threads(look, chunks), strict=True)):
        for offset, (index, (width, height, ends, problem, lasting)) in enumerate(zip(chunk, results, strict=True)):
            row = rows[index]
            row["width"], row["height"], row["ends"] = width, height, ends
            if problem:
                row["problem"] = places.setdefault(problem, len(places))
                if row["problem"] == len(found.problems):
                    found.problems.append(problem)
            if lasting:
                found.changed = True
                row["mtime"] = mtimes[number * _CHUNK + offset]
        bar.advance(task, len(chunk))


def _look(path: bytes, size: int) -> tuple[int, int, int, str, bool]:
    """Width, height, CRC of the ends, what is wrong, and whether that may be remembered."""
    ends = 0
    try:
        if not stat.S_ISREG(os.stat(path).st_mode):
            return 0, 0, 0, "neither a file nor a folder", False  # opening a pipe would wait for ever
        with open(path, "rb", buffering=0) as file:
            head = file.read(_HEAD)
            tail = head[-_TAIL:]
            if size > _HEAD:
                file.seek(-_TAIL, os.SEEK_END)
                tail = file.read()
            ends = zlib.crc32(tail, zlib.crc32(head))
            file.seek(0)
            try:
                width, height = image_size(head)
            except ImageError:
                if size <= _HEAD:
                    raise
                file.seek(0)
                width, height = image_size(file.read())
            if not looks_whole(head, tail, size) and width * height <= MAX_PIXELS:
                file.seek(0)
                decode(file.read())
    except ImageError as error:
        return 0, 0, ends, str(error), True
    except OSError as error:  # such as a missing permission, which changes neither time nor size when it is given
        return 0, 0, ends, f"cannot be read ({error.strerror})", False
    return width, height, ends, "", True


class _Cache:
    """The rows of the last scan, looked up folder by folder."""

    def __init__(self, folders: list[bytes], counts: np.ndarray, names: list[bytes], rows: np.ndarray, problems: list):
        stops = np.cumsum(counts)
        self.folders = {
            os.fsdecode(folder): slice(stop - count, stop)
            for folder, stop, count in zip(folders, stops.tolist(), counts.tolist(), strict=True)
        }
        self.names, self.rows, self.problems = names, rows, problems
        if len(names) != len(rows) or (len(stops) and stops[-1] != len(rows)):
            raise ValueError("the cache's parts do not fit together")

    def fill(self, folder: str, names: list[bytes], rows: np.ndarray) -> None:
        """Copy what is known of the files that have kept their size and modification time into ``rows``."""
        if folder not in self.folders:
            return
        old_names, old_rows = self.names[self.folders[folder]], self.rows[self.folders[folder]]
        if old_names != names:
            places = {name: place for place, name in enumerate(old_names)}
            known = np.asarray([place for place, name in enumerate(names) if name in places], dtype=np.int64)
            old_rows = old_rows[[places[names[place]] for place in known]]
        else:
            known = np.arange(len(names))
        same = (old_rows["mtime"] == rows["mtime"][known]) & (old_rows["size"] == rows["size"][known])
        rows[known[same]] = old_rows[same]


def _load(root: str) -> _Cache:
    try:
        # Opened here: of a damaged one np.load would leave the file open.
        with cache_file(root).open("rb") as opened, np.load(opened, allow_pickle=False) as file:
            if file["version"] == _VERSION and file["rows"].dtype == _ROW:
                problems = [problem.decode() for problem in split_texts(file["problems"])]
                return _Cache(
                    split_texts(file["folders"]), file["counts"], split_texts(file["names"]), file["rows"], problems
                )
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        pass  # none yet, or damaged: scanned again and written anew
    return _Cache([], np.empty(0, np.int64), [], np.empty(0, _ROW), [""])


def _hash(content: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(content, digest_size=8).digest(), "little")


@contextmanager
def _threads() -> Iterator[ThreadPoolExecutor]:
    """Threads whose waiting work is dropped when the block is left by an error or Ctrl-C."""
    pool = ThreadPoolExecutor(_THREADS)
    try:
        yield pool
    finally:
        pool.shutdown(cancel_futures=True)
