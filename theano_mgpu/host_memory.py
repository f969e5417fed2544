"""How the C library and the kernel hand out the host's memory, where simulated devices live. No-ops but on Linux."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import os
import time
from collections.abc import Iterable, Iterator
from pathlib import Path

__all__ = ["give_back_large_blocks", "hold_in_huge_pages", "host_memory", "map_in_huge_pages"]

_HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
_MAPPINGS = Path("/proc/self/maps")
_GROUP_LIMITS = (Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"))

_M_MMAP_THRESHOLD, _M_ARENA_MAX = -3, -8  # malloc.h
_MADV_HUGEPAGE, _MADV_COLLAPSE = 14, 25  # asm-generic/mman-common.h
_HUGE_PAGE = 2**21
_in_huge_pages: set[int] = set()  # addresses that have been asked for
_FEW = 8  # new ones among so many

_LOOKS, _SECONDS_BETWEEN_LOOKS = 5, 0.002


def give_back_large_blocks() -> None:
    """Have the C library map blocks from 4 MB on by themselves, and give them back to the system when they are freed.

    By default it soon takes blocks of up to 32 MB from a heap, where gradients and parameters that outlive a step leave
    holes too small for the next step's: ResNet-50 (224 x 224, batch 8, two devices) held 2.9 to 3.1 GB after eight
    steps instead of 2.3 to 2.4. Settings of the user's own (``MALLOC_...``) are left alone.
    """
    if os.name != "posix" or any(name.startswith("MALLOC_") or name == "GLIBC_TUNABLES" for name in os.environ):
        return
    set_option = getattr(_c_library(), "mallopt", None)
    if set_option is None:  # not the GNU C library
        return
    set_option(_M_MMAP_THRESHOLD, 4 * 2**20)
    set_option(_M_ARENA_MAX, 1)


def host_memory() -> int:
    """The bytes of memory that this process may use: the machine's, or its control group's where that has less."""
    limits = [os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")]
    for path in _GROUP_LIMITS:
        with contextlib.suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    return min(limits)


def map_in_huge_pages(count: int, size: int) -> None:
    """Ask for huge pages where ``count`` blocks of ``size`` bytes are just being mapped.

    A program's temporary memory is mapped anew at each call, and in pages of 4 kB the kernel clears ResNet-50's in
    300,000 faults, a twelfth of a step's processor time. XLA has no option to ask itself, so it is done for it as soon
    as the blocks are there: within some milliseconds, while the devices compute.
    """
    if not _huge_pages_on_request():
        return
    for _ in range(_LOOKS):
        blocks = [(begin, extent) for begin, extent in _anonymous_mappings() if extent >= size]
        for begin, extent in blocks:
            # One that has gone in the meantime is an error, which changes nothing.
            _c_library().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(extent), _MADV_HUGEPAGE)
        if sum(extent for _, extent in blocks) >= count * size:  # neighbours are listed as one
            return
        time.sleep(_SECONDS_BETWEEN_LOOKS)


def _anonymous_mappings() -> Iterator[tuple[int, int]]:
    """First address and size of each writable block of memory that belongs to no file."""
    for mapping in _MAPPINGS.read_text().splitlines():
        addresses, permissions, _, _, *inode_and_path = mapping.split()
        if permissions == "rw-p" and inode_and_path == ["0"]:
            begin, end = (int(address, 16) for address in addresses.split("-"))
            yield begin, end - begin


def hold_in_huge_pages(blocks: Iterable[tuple[int, int]]) -> None:
    """Move memory that is used again and again, addresses and sizes, into huge pages: at once, and each page once only.

    A process on the same host copies it in half the time then: the kernel has to hold on to every page that another
    process reads, one by one. Small blocks, and a few pages that are new among many, are not worth the call: of some
    milliseconds, and one for each page. Takes Linux 6.1.
    """
    if not _huge_pages_on_request():
        return
    pages = {
        page
        for address, size in blocks
        if size >= _HUGE_PAGE // 2
        for page in range(address // _HUGE_PAGE * _HUGE_PAGE, address + size, _HUGE_PAGE)
    }
    new = sorted(pages - _in_huge_pages)
    if _FEW * len(new) < len(pages):
        return
    _in_huge_pages.update(new)
    for begin, extent in _joined(new):
        # An error where some of it is not there, which is left as it is.
        for advice in (_MADV_HUGEPAGE, _MADV_COLLAPSE):
            _c_library().madvise(ctypes.c_void_p(begin), ctypes.c_size_t(extent), advice)


def _joined(pages: Iterable[int]) -> list[tuple[int, int]]:
    """Neighbours together, each with its size."""
    joined: list[tuple[int, int]] = []
    for page in pages:
        begin, extent = joined[-1] if joined else (page, 0)
        if begin + extent == page:
            joined[-1:] = [(begin, extent + _HUGE_PAGE)]
        else:
            joined.append((page, _HUGE_PAGE))
    return joined


@functools.cache
def _huge_pages_on_request() -> bool:
    """Whether the kernel gives them to who asks; if to all or to nobody, there is nothing to ask."""
    with contextlib.suppress(OSError):
        return "[madvise]" in _HUGE_PAGES.read_text()
    return False


@functools.cache
def _c_library() -> ctypes.CDLL:
    return ctypes.CDLL(None)
