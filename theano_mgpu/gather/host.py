"""Shards' results to the host: views of the devices' memory where they are one, copies where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from theano_mgpu.devices import Contexts
from theano_mgpu.gather.tree import TreeSum, added
from theano_mgpu.mirror import fetched, host_device, on_each, to_devices

__all__ = ["HostGather"]

# One list of arrays a shard: (1, ...) for each reduction.
Leaf = list[Any]


class HostGather:
    """Collects rounds. ``leaves`` gives, for each reduction, what is left to be summed in the fixed tree.

    One round's shards are summed by the update program itself, in one pass over memory; of several rounds only one
    partial sum a level of the tree is held.
    """

    def __init__(self, rounds: int) -> None:
        self._several = rounds > 1
        self._sum: TreeSum[Leaf] = TreeSum(_added)
        self._single: list[Leaf] = []

    def add(self, values: Sequence[jax.Array], live: int) -> None:
        for leaf in shards_on_host(values, live):
            if self._several:
                self._sum.push(leaf)
            else:
                self._single.append(leaf)

    def leaves_like(
        self, values: Sequence[jax.ShapeDtypeStruct], live: int, contexts: Contexts
    ) -> list[list[jax.ShapeDtypeStruct]]:
        """What ``leaves`` gives after rounds of such ``values``, before there are any."""
        stay = contexts.devices == [host_device()]
        placement, copies = (on_each(contexts), 1) if stay else (None, 1 if self._several else live)
        return [[jax.ShapeDtypeStruct((1, *v.shape[1:]), v.dtype, sharding=placement)] * copies for v in values]

    def leaves(self) -> list[list[Any]]:
        shards = [self._sum.result()] if self._several else self._single
        return [list(part) for part in zip(*shards, strict=True)]


def shards_on_host(values: Sequence[jax.Array], live: int) -> list[Leaf]:
    """The first ``live`` devices' rows, (1, ...) each, as numpy arrays: on a CPU the devices' own memory."""
    if values and values[0].devices() == {host_device()}:
        return [list(values)]
    rows = iter(fetched([value.addressable_data(i) for i in range(live) for value in values]))
    return [[next(rows) for _ in values] for _ in range(live)]


def _added(left: Leaf, right: Leaf) -> Leaf:
    with jax.default_device(host_device()), to_devices():
        return added(left, right)
