"""The devices' sums to the host: views of their memory where they are on it, copies where they are not."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax

from theano_mgpu.devices import Contexts
from theano_mgpu.mirror import fetched, host_device, on_each

__all__ = ["rows_like", "rows_on_host"]


def rows_on_host(values: Sequence[jax.Array]) -> list[list[Any]]:
    """For each of ``values``, (devices, ...), the devices' rows, (1, ...), as numpy arrays.

    Where the host is the only device they stay what they are.
    """
    if values and values[0].devices() == {host_device()}:
        return [[value] for value in values]
    devices = range(len(values[0].addressable_shards)) if values else ()
    rows = iter(fetched([value.addressable_data(device) for value in values for device in devices]))
    return [[next(rows) for _ in devices] for _ in values]


def rows_like(values: Sequence[jax.ShapeDtypeStruct], contexts: Contexts) -> list[list[jax.ShapeDtypeStruct]]:
    """The shapes of ``rows_on_host``, before there are any values."""
    placement = on_each(contexts) if contexts.devices == [host_device()] else None
    return [
        [jax.ShapeDtypeStruct((1, *value.shape[1:]), value.dtype, sharding=placement)] * len(contexts)
        for value in values
    ]
