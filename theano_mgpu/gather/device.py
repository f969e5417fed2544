"""Combining between the devices, in the fixed tree."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jax import lax

from theano_mgpu.devices import Contexts
from theano_mgpu.gather.tree import tree_sum

__all__ = ["all_reduce", "swaps_halves"]

_FEW = 2**14  # numbers, for which halves are not worth an exchange more


def swaps_halves(contexts: Contexts) -> bool:
    """Whether pairs swap halves and add them: what XLA has gloo do between CPUs of several processes is slower.

    Its reduce-scatter of 40 MB in pairs takes 104 ms where a swap of the halves takes 32, on two cores.
    """
    return contexts.platform == "cpu" and len({device.process_index for device in contexts.devices}) > 1


def all_reduce(
    value: Any, devices: int, axis: str, combine: Callable[[Any, Any], Any] = jnp.add, *, swaps: bool = False
) -> Any:
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
        if swaps:
            part = _sum_of_own_half(part, axis, pairs)
        else:
            part = lax.psum_scatter(part, axis, axis_index_groups=pairs, tiled=True)
    for pairs in reversed(levels):
        part = lax.all_gather(part, axis, axis_index_groups=pairs, tiled=True)
    return part[: value.size].reshape(value.shape)


def _sum_of_own_half(part: Any, axis: str, pairs: list[list[int]]) -> Any:
    """The lower one of a pair goes on with the first half."""
    first, second = part.reshape(2, -1)
    _, distance = pairs[0]
    is_lower = lax.axis_index(axis) & distance == 0
    both_ways = [*pairs, *(pair[::-1] for pair in pairs)]
    return jnp.where(is_lower, first, second) + lax.ppermute(jnp.where(is_lower, second, first), axis, both_ways)


def _pairs(devices: int, distance: int) -> list[list[int]]:
    return [[i, i | distance] for i in range(devices) if not i & distance]
