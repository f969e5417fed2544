"""Resident data on the devices: a piece of the rows on each, placed once, and how a device gets rows of the others."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.sharding import Sharding

from theano_mgpu.devices import Contexts
from theano_mgpu.mirror import AXIS, Mirrors, on_each, read, to_devices
from theano_mgpu.resident_data import ResidentData
from theano_mgpu.vectors import ALIGNMENT, Slot

__all__ = ["Pieces", "bytes_on_each", "current", "pieces_like"]


@partial(jax.tree_util.register_dataclass, data_fields=["array"], meta_fields=["length", "devices"])
@dataclass(frozen=True)
class Pieces:
    """Data of ``length`` rows in one piece a device, behind the last row zeros; in one piece, all of it.

    Outside a program ``array`` is (devices * piece, ...); inside it is a device's own piece, (piece, ...). The length
    is part of what a program is compiled for, as shapes are.
    """

    array: Any
    length: int
    devices: int

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.length, *self.array.shape[1:])

    @property
    def dtype(self) -> Any:
        return self.array.dtype

    def whole(self) -> jax.Array:
        """All rows, on every device."""
        if self.devices == 1:
            return self.array
        return lax.all_gather(self.array, AXIS, tiled=True)[: self.length]

    def rows(self, indices: jax.Array) -> jax.Array:
        """The rows at ``indices``, an integer vector from 0 to length - 1 of the device's own, as long on each.

        All devices' indices go to every device (all-gather). Each takes the rows that it has, zeros for the others, and
        the sum over the devices (reduce-scatter) gives each device its own. Bits are added, as integers: a sum of
        floats makes 0.0 of -0.0.
        """
        if self.devices == 1:
            return jnp.take(self.array, indices, axis=0, mode="clip")
        piece = self.array.shape[0]
        places = lax.all_gather(indices, AXIS) - lax.axis_index(AXIS).astype(indices.dtype) * piece  # (devices, rows)
        rows = jnp.take(self.array, places, axis=0, mode="clip")
        is_own = ((places >= 0) & (places < piece)).reshape(places.shape + (1,) * (rows.ndim - 2))
        own = jnp.where(is_own, rows, jnp.zeros((), rows.dtype))
        return _from_bits(lax.psum_scatter(_bits(own), AXIS), rows.dtype)


def _bits(values: jax.Array) -> jax.Array:
    if jnp.issubdtype(values.dtype, jnp.complexfloating):
        return _bits(jnp.stack([values.real, values.imag], -1))
    return values.view(f"uint{8 * values.dtype.itemsize}")


def _from_bits(bits: jax.Array, dtype: Any) -> jax.Array:
    if jnp.issubdtype(dtype, jnp.complexfloating):
        parts = bits.view(f"float{4 * dtype.itemsize}")
        return lax.complex(parts[..., 0], parts[..., 1])
    return bits.view(dtype)


def current(slots: Sequence[Slot], mirrors: Mirrors, contexts: Contexts | None = None) -> list[Any]:
    """What the variables hold now: mirrors, and of resident data pieces over ``contexts``, else all of it."""
    resident = {
        slot: _kept(slot, on_each(contexts), len(contexts)) if contexts else _kept(slot, mirrors.placement, 1)
        for slot in slots
        if isinstance(slot, ResidentData)
    }
    others = iter(mirrors.arguments([slot for slot in slots if slot not in resident]))
    return [resident[slot] if slot in resident else next(others) for slot in slots]


def pieces_like(variable: ResidentData, contexts: Contexts) -> Pieces:
    """What stands for the data over ``contexts`` before it is placed."""
    value, devices = read(variable), len(contexts)
    shape = (devices * _piece(value, devices), *value.shape[1:])
    return Pieces(jax.ShapeDtypeStruct(shape, value.dtype, sharding=on_each(contexts)), len(value), devices)


def bytes_on_each(value: Any) -> int:
    """Of a mirror, or of pieces, or of what stands for them."""
    array, devices = (value.array, value.devices) if isinstance(value, Pieces) else (value, 1)
    return array.size * array.dtype.itemsize // devices


def _kept(variable: ResidentData, placement: Sharding, devices: int) -> Pieces:
    """What was placed before, if the variable still holds that array: steps on the same devices share it."""
    value = read(variable)
    held, pieces = variable.placed.get((placement, devices), (None, None))
    if held is value and pieces is not None:
        return pieces
    pieces = Pieces(_cut(value, placement, devices), len(value), devices)
    if not value.flags.writeable:  # a plain function's update leaves an array that may be changed in place
        variable.placed[placement, devices] = value, pieces
    return pieces


def _cut(value: np.ndarray, placement: Sharding, devices: int) -> jax.Array:
    """(devices * piece, ...): a CPU's pieces are the value's own memory, but for one that zeros fill up."""
    piece = _piece(value, devices)

    def part(index: tuple[slice, ...]) -> np.ndarray:
        start = index[0].start or 0
        rows = value[start : start + piece]
        if len(rows) == piece:
            return rows
        return np.concatenate([rows, np.zeros((piece - len(rows), *value.shape[1:]), value.dtype)])

    with to_devices():
        return jax.make_array_from_callback((devices * piece, *value.shape[1:]), placement, part)


def _piece(value: np.ndarray, devices: int) -> int:
    """The rows of a piece."""
    piece = -(-len(value) // devices)
    if devices == 1:
        return piece
    # So that each begins at an address that XLA takes over; a few rows of 50,000 on a GPU.
    step = ALIGNMENT // math.gcd(ALIGNMENT, value[0].nbytes)
    return -(-piece // step) * step
