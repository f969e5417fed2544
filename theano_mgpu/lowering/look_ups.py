"""Rows of resident data looked up by their indices, on a device."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from pytensor.graph.basic import Apply
from pytensor.tensor.subtensor import indices_from_subtensor

from theano_mgpu.lowering.dispatch import require
from theano_mgpu.pieces import Pieces

__all__ = ["is_look_up", "looked_up", "whole"]


def is_look_up(node: Apply, inputs: Sequence[Any]) -> bool:
    """``data[indices]`` or ``data[indices, ...]`` of resident data: axis 0 by integers, not by a slice."""
    if not inputs or not isinstance(inputs[0], Pieces):
        return False
    if type(node.op).__name__ not in ("Subtensor", "AdvancedSubtensor", "AdvancedSubtensor1"):
        return False
    return not isinstance(node.op.idx_list[0], slice) and not any(isinstance(v, Pieces) for v in inputs[1:])


def looked_up(node: Apply, inputs: Sequence[Any]) -> jax.Array:
    """Only the rows that are asked for travel; all other axes are indexed behind."""
    data = inputs[0]
    first, *rest = indices_from_subtensor(inputs[1:], node.op.idx_list)
    first = jnp.asarray(first)
    indices = _within(node, data, first.reshape(-1))
    rows = data.rows(indices)
    if not rest:
        return rows.reshape(first.shape + rows.shape[1:])
    return rows[(np.arange(first.size).reshape(first.shape)[()], *rest)]


def whole(value: Any) -> Any:
    """All rows, for an op that is no look-up."""
    return value.whole() if isinstance(value, Pieces) else value


def _within(node: Apply, data: Pieces, indices: jax.Array) -> jax.Array:
    """The indices from 0 on; a step with one outside raises."""
    length, is_unsigned = data.length, jnp.issubdtype(indices.dtype, jnp.unsignedinteger)
    if indices.dtype.itemsize < 4:
        indices = indices.astype(jnp.int32)  # more rows than int8 can count
    elif is_unsigned:
        indices = jnp.minimum(
            indices, np.asarray(2**31 - 1 if indices.dtype.itemsize == 4 else 2**63 - 1, indices.dtype)
        )
        indices = indices.astype(jnp.int32 if indices.dtype.itemsize == 4 else jnp.int64)
    if indices.size:
        name = node.inputs[0].name or "the resident data"
        low, high = indices.min(), indices.max()
        require(
            (low >= -length) & (high < length),
            IndexError,
            f"{name} has {length} rows, but is looked up at indices from {{low}} to {{high}}. They must be from "
            f"{-length} to {length - 1}; those below zero count from the end.",
            low=low,
            high=high,
        )
    return jnp.clip(jnp.where(indices < 0, indices + length, indices), 0, length - 1)
