"""The fixed binary tree in which shards are combined: the same order, so the same bits, on any number of devices."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

__all__ = ["TreeSum", "tree_sum"]

T = TypeVar("T")


def tree_sum(leaves: Sequence[T], add: Callable[[T, T], T]) -> T:
    """Neighbours first: (0 + 1) + (2 + 3), ...; where a level is odd its last goes up as it is."""
    level = list(leaves)
    while len(level) > 1:
        pairs = [add(level[i], level[i + 1]) for i in range(0, len(level) - 1, 2)]
        level = pairs + level[len(pairs) * 2 :]
    return level[0]


class TreeSum(Generic[T]):
    """``tree_sum`` of leaves that come one by one, holding at most one partial sum a level.

    Leaves come in the order of their places. Several may have one place; a place that has none counts as nothing.
    """

    def __init__(self, add: Callable[[T, T], T]) -> None:
        self._add = add
        self._branches: list[_Branch[T]] = []  # from left to right

    def push(self, place: int, leaf: T, following: int) -> None:
        """``following`` is the place of the next leaf; after the last one any place will do."""
        if self._branches and self._branches[-1].first == place:
            leaf = self._add(self._branches.pop().value, leaf)
        self._branches.append(_Branch(place, 1, leaf))
        self._close_before(following)

    def result(self) -> T:
        values = [branch.value for branch in self._branches]
        right = values.pop()
        while values:
            right = self._add(values.pop(), right)
        return right

    def _close_before(self, place: int) -> None:
        """Take up the tree what no leaf of ``place`` or after it can join."""
        while self._branches and self._branches[-1].parent_end <= place:
            branch = self._branches.pop()
            value, first = branch.value, branch.parent_end - 2 * branch.places
            if self._branches and self._branches[-1].first >= first:
                value = self._add(self._branches.pop().value, value)
            self._branches.append(_Branch(first, 2 * branch.places, value))


@dataclass(frozen=True)
class _Branch(Generic[T]):
    """The sum of the leaves in ``places`` places from ``first`` on."""

    first: int
    places: int
    value: T

    @property
    def parent_end(self) -> int:
        return (self.first // (2 * self.places) + 1) * 2 * self.places
