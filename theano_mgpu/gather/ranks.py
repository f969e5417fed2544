"""Sums over ranks, piece by piece: every rank sums one piece of each array, and what comes of it goes to all.

What a rank sends is (R - 1) / R of the arrays' bytes for the sums, and as much again for what comes of them, however
many ranks R there are: a reduce-scatter and an all-gather, in which all pairs of ranks exchange their pieces directly.
A ring would send as much, but add in another order on every piece; here the owner has all ranks' terms, and adds them
in the fixed tree.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from theano_mgpu.cluster import Cluster
from theano_mgpu.gather.combination import combination
from theano_mgpu.gather.host import rows_on_host
from theano_mgpu.gather.memory import Memory
from theano_mgpu.gather.tree import tree_sum
from theano_mgpu.host_memory import hold_in_huge_pages
from theano_mgpu.mirror import on_host, to_devices
from theano_mgpu.vectors import ALIGNMENT, grouped

__all__ = ["RankGather", "length", "others", "pieces", "spread", "with_piece"]

# Arrays of fewer bytes all ranks send whole, in one message: pieces would be many small ones.
SMALL = 2**14
# Sums over a rank's own devices are begun together by so many bytes: the first travel while the next are computed.
_BUCKET = 2**24


class RankGather:
    """The gather of a step's arrays over ``cluster``; ``kinds`` are their reductions, one for each array.

    ``kept_in_pieces`` says of which arrays only this rank's piece is wanted, in one row of each rank; of the others
    all ranks get the whole.
    """

    def __init__(self, cluster: Cluster, kinds: Sequence[str], kept_in_pieces: Sequence[bool]) -> None:
        self._cluster = cluster
        self._kinds = kinds
        self._kept_in_pieces = kept_in_pieces
        self._received: dict[tuple[int, int], np.ndarray] = {}
        self._memory = Memory()

    def own_sums(self, values: Sequence[jax.Array]) -> list[list[Any]]:
        """Over this rank's devices, begun but not waited for: of each of ``values``, (devices, ...), one (1, ...)."""
        rows = rows_on_host(values)
        if not rows or len(rows[0]) == 1:
            return rows
        summed: list[list[Any]] = []
        for bucket in grouped(range(len(values)), lambda i: values[i].nbytes // max(len(values[i]), 1), _BUCKET):
            kinds = tuple(self._kinds[i] for i in bucket)
            with to_devices():
                summed += [[total] for total in _tree_sums(kinds)([rows[i] for i in bucket])]
        return summed

    def rows(self, own: Sequence[Sequence[Any]]) -> list[list[Any]]:
        """The rows of all ranks that are to be combined, where they are not already: (1, ...) or, of a piece, (1, n).

        ``own`` has one row of this rank for each array, which may still be computed.
        """
        received: dict[int, list[np.ndarray]] = {}
        small: dict[int, np.ndarray] = {}
        requests: list[Any] = []
        arrays = []
        for number, (row,) in enumerate(own):
            array = np.asarray(row)  # waits for this one alone
            arrays.append(array)
            if array.nbytes < SMALL and not self._kept_in_pieces[number]:
                small[number] = array
            else:
                received[number], more = self._exchanged(number, array.reshape(-1))
                requests += more
        of_small = self._all_whole(list(small.values()))
        self._cluster.wait(requests)
        # The next step's will be where this one's are.
        hold_in_huge_pages((array.ctypes.data, array.nbytes) for array in arrays)
        self._memory.settle()
        rows = dict(zip(small, of_small, strict=True))
        whole = [number for number in received if not self._kept_in_pieces[number]]
        rows |= dict(zip(whole, self._summed_whole(whole, received, arrays), strict=True))
        rows |= {n: [piece[None] for piece in found] for n, found in received.items() if self._kept_in_pieces[n]}
        return [rows[number] for number in range(len(own))]

    def rows_like(self, values: Sequence[jax.ShapeDtypeStruct]) -> list[list[jax.ShapeDtypeStruct]]:
        """The shapes of ``rows``, before there are any values; ``values`` are a round's, (devices, ...)."""
        like = []
        for value, in_pieces in zip(values, self._kept_in_pieces, strict=True):
            shape, count = value.shape[1:], self._cluster.size
            size = int(np.prod(shape, dtype=np.int64))
            if in_pieces:
                shape = (length(pieces(size, value.dtype, count)[self._cluster.rank]),)
            elif size * value.dtype.itemsize >= SMALL:
                count = 1
            like.append([jax.ShapeDtypeStruct((1, *shape), value.dtype)] * count)
        return like

    def _exchanged(self, number: int, array: np.ndarray) -> tuple[list[np.ndarray], list[Any]]:
        """All ranks' terms of this rank's piece, as they will be when the requests are done."""
        where = pieces(array.size, array.dtype, self._cluster.size)
        own = array[where[self._cluster.rank]]
        terms, requests = [own] * self._cluster.size, []
        for rank in others(self._cluster.rank, self._cluster.size):
            if own.size:
                terms[rank] = self._term(number, rank, own)
                requests.append(self._cluster.receive(terms[rank], rank, number))
            if length(where[rank]):
                requests.append(self._cluster.send(array[where[rank]], rank, number))
        return terms, requests

    def _term(self, number: int, rank: int, like: np.ndarray) -> np.ndarray:
        """The same memory at every step."""
        held = self._received.get((number, rank))
        if held is None or (held.size, held.dtype) != (like.size, like.dtype):
            held = self._received[number, rank] = self._memory.vector(like.size, like.dtype)
        return held

    def _all_whole(self, arrays: Sequence[np.ndarray]) -> list[list[np.ndarray]]:
        """Of each array all ranks', in one message."""
        if not arrays:
            return []
        joined = np.concatenate([array.reshape(-1).view(np.uint8) for array in arrays])
        everyone = self._cluster.all_gathered(joined)
        ends = np.cumsum([array.nbytes for array in arrays])
        return [
            [row[end - array.nbytes : end].view(array.dtype).reshape(array.shape) for row in everyone]
            for array, end in zip(arrays, ends, strict=True)
        ]

    def _summed_whole(
        self, numbers: Sequence[int], received: dict[int, list[np.ndarray]], arrays: Sequence[np.ndarray]
    ) -> list[list[np.ndarray]]:
        """The sums themselves, one row of each array, from the pieces that the ranks have summed."""
        if not numbers:
            return []
        kinds = tuple(self._kinds[number] for number in numbers)
        with to_devices():
            sums = _tree_sums(kinds)([[term[None] for term in received[number]] for number in numbers])
        wholes = [
            with_piece(self._cluster, self._memory.vector(arrays[number].size, total.dtype), total[0])
            for number, total in zip(numbers, sums, strict=True)
        ]
        spread(self._cluster, wholes)
        return [[whole.reshape(arrays[number].shape)] for number, whole in zip(numbers, wholes, strict=True)]


def with_piece(cluster: Cluster, whole: np.ndarray, piece: Any) -> np.ndarray:
    """``whole`` with this rank's piece put in place."""
    whole[pieces(whole.size, whole.dtype, cluster.size)[cluster.rank]] = np.asarray(piece)
    return whole


def spread(cluster: Cluster, wholes: Sequence[np.ndarray]) -> None:
    """Of each of the arrays every rank has its piece in place; it gets the others' pieces."""
    requests = []
    for number, whole in enumerate(wholes):
        where = pieces(whole.size, whole.dtype, cluster.size)
        own = whole[where[cluster.rank]]
        for rank in others(cluster.rank, cluster.size):
            if length(where[rank]):
                requests.append(cluster.receive(whole[where[rank]], rank, number))
            if own.size:
                requests.append(cluster.send(own, rank, number))
    cluster.wait(requests)


def others(rank: int, size: int) -> list[int]:
    """Every rank another one first, so that not all send to one at once."""
    return [(rank + i) % size for i in range(1, size)]


def pieces(size: int, dtype: Any, ranks: int) -> list[slice]:
    """Where in an array of ``size`` entries each rank's piece is: of one length, but for the last ones.

    Each begins at a multiple of 64 bytes, where XLA takes memory over as it is.
    """
    step = max(ALIGNMENT // np.dtype(dtype).itemsize, 1)
    length = -(-size // (ranks * step)) * step
    return [slice(min(rank * length, size), min((rank + 1) * length, size)) for rank in range(ranks)]


def length(where: slice) -> int:
    return where.stop - where.start


@functools.cache
def _tree_sums(kinds: tuple[str, ...]) -> Any:
    """The program that combines rows in the fixed tree, on the host."""

    def sums(rows: list[list[jax.Array]]) -> list[jax.Array]:
        return [
            tree_sum([jnp.asarray(row) for row in of_one], combination(kind).combine)
            for kind, of_one in zip(kinds, rows, strict=True)
        ]

    return jax.jit(sums, out_shardings=on_host())
