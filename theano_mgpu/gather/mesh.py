"""Rounds' sums on the devices, where the update is applied there."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from theano_mgpu.gather.tree import TreeSum, added

__all__ = ["MeshGather"]


class MeshGather:
    """Adds the rounds' sums, each already summed over the devices; ``add`` and ``leaves`` as in ``HostGather``."""

    def __init__(self) -> None:
        self._sum: TreeSum[list[jax.Array]] = TreeSum(added)

    def add(self, values: Sequence[jax.Array], live: int) -> None:
        self._sum.push(list(values))

    def leaves(self) -> list[list[jax.Array]]:
        return [[value] for value in self._sum.result()]
