"""Sums over the ranks: each rank joins its piece of everyone's vectors, and gives the result to all."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeAlias

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable

from theano_mgpu.cluster import Cluster
from theano_mgpu.first_values import take_over_from_first
from theano_mgpu.gather.ranks import others, pieces
from theano_mgpu.gather.tree import tree_sum

__all__ = ["Combine", "Ranks", "mean"]

#: What becomes of the ranks' pieces (by rank, of one shape); the slice says which part of the vector they are.
Combine: TypeAlias = Callable[[Sequence[np.ndarray], slice], np.ndarray]

# Bytes of a message: the next one travels while this one is summed.
_MESSAGE = 4 << 20


class Ranks:
    """This rank of ``size``, alone where there is no cluster; ``bytes_sent`` counts what it sent."""

    def __init__(self, cluster: Cluster | None) -> None:
        self._cluster = cluster
        self.rank = cluster.rank if cluster else 0
        self.size = cluster.size if cluster else 1
        self.bytes_sent = 0

    def gathered(self, value: Any) -> list[Any]:
        return self._cluster.gathered(value) if self._cluster else [value]

    def take_over_from_first(self, variables: Sequence[SharedVariable]) -> None:
        """Give the variables, the same on all ranks, rank 0's values."""
        if self._cluster is not None:
            take_over_from_first(self._cluster, variables)

    def send(self, array: np.ndarray, to: int) -> Any:
        """Begin to send contiguous memory; a request for ``wait``."""
        assert self._cluster is not None
        self.bytes_sent += array.nbytes
        return self._cluster.send(array, to)

    def receive(self, array: np.ndarray, source: int) -> Any:
        assert self._cluster is not None
        return self._cluster.receive(array, source)

    def wait(self, requests: Sequence[Any]) -> None:
        if self._cluster is not None:
            self._cluster.wait(requests)

    def mean(self, vector: np.ndarray) -> np.ndarray:
        """The mean of all ranks' vectors, of one size and dtype, as a new one: the same bits on every rank."""
        return self.combined(vector, lambda rows, _: mean(rows))

    def combined(self, vector: np.ndarray, combine: Combine) -> np.ndarray:
        """What ``combine`` makes of all ranks' vectors, as a new one: the same on every rank.

        A reduce-scatter and an all-gather. Each rank combines one piece of the vector, in parts, and sends what comes
        out to the others: in all 2 (ranks - 1) / ranks of the vector's bytes.
        """
        result = np.empty_like(vector)
        peers = others(self.rank, self.size)
        where = pieces(len(vector), vector.dtype, self.size)
        parts = [list(_parts(piece, vector.itemsize)) for piece in where]

        # (ranks, piece): what the others have where this rank combines.
        mine = where[self.rank]
        incoming = np.empty((self.size, mine.stop - mine.start), vector.dtype)
        incoming[self.rank] = vector[mine]
        here = [slice(part.start - mine.start, part.stop - mine.start) for part in parts[self.rank]]
        arriving = [[self.receive(incoming[rank, part], rank) for rank in peers] for part in here]
        results = [self.receive(result[part], rank) for rank in peers for part in parts[rank]]
        leaving = [self.send(vector[part], rank) for rank in peers for part in parts[rank]]
        for part, place, requests in zip(parts[self.rank], here, arriving, strict=True):
            self.wait(requests)
            result[part] = combine(list(incoming[:, place]), part)
            leaving += [self.send(result[part], rank) for rank in peers]
        self.wait([*results, *leaving])
        return result


def mean(rows: Sequence[np.ndarray]) -> np.ndarray:
    """Summed in the fixed tree, 16-bit numbers in float32; the result too is in the dtype of the sum."""
    wide = np.result_type(rows[0].dtype, np.float32)
    return tree_sum([row.astype(wide, copy=False) for row in rows], np.add) / wide.type(len(rows))


def _parts(piece: slice, itemsize: int) -> Iterator[slice]:
    length = _MESSAGE // itemsize
    for start in range(piece.start, piece.stop, length):
        yield slice(start, min(start + length, piece.stop))
