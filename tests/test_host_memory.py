"""The allocator's settings and huge pages, as the kernel reports them for this very process."""

from __future__ import annotations

import mmap
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from theano_mgpu.host_memory import hold_in_huge_pages, map_in_huge_pages

HUGE_PAGES = Path("/sys/kernel/mm/transparent_hugepage/enabled")
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="reads what Linux reports of a process")
with_huge_pages = pytest.mark.skipif(
    not HUGE_PAGES.exists() or "[madvise]" not in HUGE_PAGES.read_text(), reason="huge pages are not given on request"
)

# Frees a block of 5 MB that lies below one still in use, and prints how much less the process holds.
FREES_A_BLOCK = """
import ctypes, resource
import theano_mgpu as tm
tm.contexts("cpu:1")
c = ctypes.CDLL(None)
c.malloc.restype, c.malloc.argtypes, c.free.argtypes = ctypes.c_void_p, [ctypes.c_size_t], [ctypes.c_void_p]
resident = lambda: int(open("/proc/self/statm").read().split()[1]) * resource.getpagesize()
for _ in range(3):  # the first ones teach the C library, left to itself, to keep such blocks
    c.free(c.malloc(20 * 2**20))
size = 5 * 2**20
blocks = [c.malloc(size) for _ in range(2)]
for block in blocks:
    ctypes.memset(block, 1, size)
before = resident()
c.free(blocks[0])
print(before - resident())
"""


def given_back(**environment: str) -> int:
    """Bytes by which a process shrinks that frees 5 MB."""
    done = subprocess.run(
        [sys.executable, "-c", FREES_A_BLOCK], env={**os.environ, **environment}, capture_output=True, check=True
    )
    return int(done.stdout)


@on_linux
def test_a_freed_large_block_goes_back_to_the_system():
    assert given_back() >= 4 * 2**20


@on_linux
def test_settings_of_the_users_own_are_left_alone():
    assert given_back(MALLOC_ARENA_MAX="2") < 2**20


@with_huge_pages
def test_memory_in_use_is_moved_into_huge_pages():
    size = 64 * 2**20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        view = np.frombuffer(block, np.uint8)
        np.frombuffer(block, np.uint8)[:] = np.arange(size) % 251
        address = view.ctypes.data
        assert in_huge_pages(address) == 0
        hold_in_huge_pages([(address, 2**20 - 1)])  # small
        assert in_huge_pages(address) == 0
        hold_in_huge_pages([(address, size // 2), (address + size // 2, size // 2)])
        if in_huge_pages(address) == 0:
            pytest.skip("this kernel moves no memory into huge pages at once")
        assert in_huge_pages(address) >= size - 2 * 2**21
        assert (view == np.arange(size) % 251).all()
        del view


@with_huge_pages
def test_a_block_that_was_just_mapped_comes_in_huge_pages():
    size = 64 * 2**20
    with mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS) as block:
        view = np.frombuffer(block, np.uint8)
        assert "hg" not in flags_at(view.ctypes.data)
        map_in_huge_pages(count=1, size=size)
        assert "hg" in flags_at(view.ctypes.data)
        del view


def flags_at(address: int) -> list[str]:
    return of_mapping(address, "VmFlags:")


def in_huge_pages(address: int) -> int:
    """Bytes."""
    return 1024 * int(of_mapping(address, "AnonHugePages:")[0])


def of_mapping(address: int, line: str) -> list[str]:
    """What the kernel says in a line of the mapping that an address lies in (proc(5), smaps)."""
    inside = False
    for text in Path("/proc/self/smaps").read_text().splitlines():
        first, *rest = text.split()
        if "-" in first and not first.endswith(":"):
            begin, end = (int(bound, 16) for bound in first.split("-"))
            inside = begin <= address < end
        elif inside and first == line:
            return rest
    raise AssertionError(f"no mapping at {address:#x}")
