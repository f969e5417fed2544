"""The fixed binary tree in which shards are summed: the same order, and so the same bits, on any number of devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp

__all__ = ["TreeSum", "added", "tree_sum"]

T = TypeVar("T")


def tree_sum(leaves: Sequence[T], add: Callable[[T, T], T]) -> T:
    """Neighbours first: (0 + 1) + (2 + 3), ...; where a level is odd its last goes up as it is."""
    level = list(leaves)
    while len(level) > 1:
        pairs = [add(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


class TreeSum(Generic[T]):
    """``tree_sum`` of leaves that come one by one, holding one partial sum a level: a binary counter's carries."""

    def __init__(self, add: Callable[[T, T], T]) -> None:
        self._add = add
        self._partial: list[tuple[int, T]] = []  # (leaves below, sum), largest first

    def push(self, leaf: T) -> None:
        count = 1
        while self._partial and self._partial[-1][0] == count:
            _, left = self._partial.pop()
            leaf, count = self._add(left, leaf), 2 * count
        self._partial.append((count, leaf))

    def result(self) -> T:
        sums = [value for _, value in self._partial]
        right = sums.pop()
        while sums:
            right = self._add(sums.pop(), right)
        return right


@jax.jit
def added(left: list[jax.Array], right: list[jax.Array]) -> list[jax.Array]:
    """Two shards' arrays, or two partial sums, added one by one."""
    return jax.tree.map(jnp.add, left, right)
