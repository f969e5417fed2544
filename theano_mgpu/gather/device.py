"""Combining between the devices, in the fixed tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from theano_mgpu.gather.tree import tree_sum

__all__ = ["all_reduce"]

_FEW = 2**14  # numbers, for which halves are not worth an exchange more


def all_reduce(value: Any, devices: int, axis: str, combine: Callable[[Any, Any], Any] = jnp.add) -> Any:
    """``value`` of all devices of a mesh axis combined, on each of them, in the order of ``tree_sum``.

    Sums over a power of two of devices: level by level, pairs of devices add what they have, and a sum of two has the
    same bits in either order. Few numbers are added whole by both (recursive doubling); of many, each of the pair goes
    on with one half, and in the end the halves are put together again (recursive halving and doubling: what each device
    sends does not grow with their number). Thakur et al., "Optimization of Collective Communication Operations in
    MPICH", 2005, section 4. Anything else: every device gathers all and combines them in the tree.
    """
    if combine is not jnp.add or devices & (devices - 1) or value.dtype == jnp.bool_:
        gathered = lax.all_gather(value, axis)
        return tree_sum([gathered[i] for i in range(devices)], combine)
    levels = [_pairs(devices, 1 << level) for level in range((devices - 1).bit_length())]
    if devices == 2 or value.size < _FEW:
        for pairs in levels:
            value = lax.psum(value, axis, axis_index_groups=pairs)
        return value
    part = jnp.pad(value.reshape(-1), (0, -value.size % devices))
    for pairs in levels:
        part = lax.psum_scatter(part, axis, axis_index_groups=pairs, tiled=True)
    for pairs in reversed(levels):
        part = lax.all_gather(part, axis, axis_index_groups=pairs, tiled=True)
    return part[: value.size].reshape(value.shape)


def _pairs(devices: int, distance: int) -> list[list[int]]:
    return [[i, i | distance] for i in range(devices) if not i & distance]
