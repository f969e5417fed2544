"""Rounds' sums on the devices, where the update is applied there."""

from __future__ import annotations

from collections.abc import Sequence

import jax

from theano_mgpu.devices import Contexts
from theano_mgpu.gather.tree import TreeSum, added
from theano_mgpu.mirror import on_every

__all__ = ["MeshGather"]


class MeshGather:
    """Adds the rounds' sums, each already summed over the devices; with the methods of ``HostGather``."""

    def __init__(self) -> None:
        self._sum: TreeSum[list[jax.Array]] = TreeSum(added)

    def add(self, values: Sequence[jax.Array], live: int) -> None:
        self._sum.push(list(values))

    def leaves_like(
        self, values: Sequence[jax.ShapeDtypeStruct], live: int, contexts: Contexts
    ) -> list[list[jax.ShapeDtypeStruct]]:
        """What ``leaves`` gives after rounds of such ``values``, before there are any."""
        return [[jax.ShapeDtypeStruct(v.shape, v.dtype, sharding=on_every(contexts))] for v in values]

    def leaves(self) -> list[list[jax.Array]]:
        return [[value] for value in self._sum.result()]
