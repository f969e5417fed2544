"""Combining between the devices, in the fixed tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from theano_mgpu.gather.tree import tree_sum

__all__ = ["all_reduce"]


def all_reduce(value: Any, devices: int, axis: str, combine: Callable[[Any, Any], Any] = jnp.add) -> Any:
    """``value`` of all devices of a mesh axis combined, on each of them, in the order of ``tree_sum``.

    A power of two: recursive doubling (Thakur et al., "Optimization of Collective Communication Operations in MPICH",
    2005, section 4): log2(devices) exchanges, and addition commutes, so every device adds the tree's own pairs. Any
    other number: every device gathers all and combines them in the tree.
    """
    if devices & (devices - 1) == 0:
        distance = 1
        while distance < devices:
            partner = [(i, i ^ distance) for i in range(devices)]
            value = combine(value, lax.ppermute(value, axis, partner))
            distance *= 2
        return value
    gathered = lax.all_gather(value, axis)
    return tree_sum([gathered[i] for i in range(devices)], combine)
