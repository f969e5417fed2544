"""Shared variables on every context: versions of the host's values, current at each step.

The host's value is the truth, whoever wrote it: ``set_value``, a plain ``pytensor.function`` (which writes the
container, or the array in place), or our own step. So a mirror is kept only while it *is* the host's memory, or while
the value is lent to the devices; any other is written anew before each step.
"""

from __future__ import annotations

import copy
import ctypes
import functools
import operator
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec, Sharding, SingleDeviceSharding
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.tensor.random.type import RandomType
from pytensor.tensor.type import TensorType

from theano_mgpu.devices import Contexts
from theano_mgpu.lending import Loan, loan_of, peek
from theano_mgpu.vectors import Slot, Vector, variables_of

__all__ = [
    "Mirrors",
    "advanced",
    "as_numpy",
    "fetched",
    "host_device",
    "mesh_of",
    "on_each",
    "on_every",
    "on_host",
    "placed",
    "read",
    "shapes_of",
    "to_devices",
    "to_host",
    "value_of",
    "write",
]

AXIS = "shards"


def host_device() -> jax.Device:
    """JAX's device for the host's own memory."""
    return jax.local_devices(backend="cpu")[0]


def read(variable: SharedVariable) -> Any:
    """The value that PyTensor itself would read now: a numpy array, or a numpy generator."""
    return variable.container.storage[0]


def write(variable: SharedVariable, value: Any) -> None:
    """Write a value where PyTensor reads it. Plain functions hold the cell itself, so it must stay the same one."""
    variable.container.storage[0] = value


def shapes_of(variables: Iterable[SharedVariable]) -> dict[SharedVariable, tuple[int, ...]]:
    return {v: value.shape for v in variables if isinstance(value := peek(v), np.ndarray)}


def key_of(generator: np.random.Generator) -> np.ndarray:
    """A random key, uint32[2], drawn from the generator's state without advancing it."""
    return _draw_key(copy.deepcopy(generator))


def advanced(generator: np.random.Generator) -> np.random.Generator:
    """The generator after one step: past the draw of the step's key."""
    after = copy.deepcopy(generator)
    _draw_key(after)
    return after


def _draw_key(generator: np.random.Generator) -> np.ndarray:
    return generator.integers(0, 2**32, size=2, dtype=np.uint32)


def require_mirrorable(variable: SharedVariable) -> None:
    if not isinstance(variable.type, (TensorType, RandomType)):
        raise TypeError(
            f"shared variable {variable.name or variable}: expected a tensor or a random generator, got "
            f"{variable.type}; only those can be sent to the devices."
        )


@dataclass(frozen=True)
class _Mirror:
    """A slot's value on the host: ``parts`` are what its variables hold, each in the memory of ``whole``."""

    parts: Sequence[np.ndarray]
    whole: np.ndarray
    array: jax.Array | None  # of the same memory, where that is on the host


class Mirrors:
    """Shared variables under one placement, replicated over the devices of contexts or on the host: an array a slot."""

    def __init__(self, placement: Sharding) -> None:
        self.placement = placement
        self._kept: dict[Slot, _Mirror] = {}

    def arrays(self, slots: Sequence[Slot]) -> list[jax.Array]:
        """The variables' current values on the devices; random generators as keys."""
        lent = {slot: loan.array for slot in slots if (loan := self._lent(slot))}
        current = {slot: self._current(slot) for slot in slots if slot not in lent}
        to_place = [slot for slot, mirror in current.items() if mirror is None or mirror.array is None]
        values = [mirror.whole if (mirror := current[slot]) else value_of(slot) for slot in to_place]
        arrays = lent | dict(zip(to_place, placed(values, self.placement), strict=True))
        for slot, value in zip(to_place, values, strict=True):
            if not isinstance(slot, Vector):
                self.keep(slot, [value], value, arrays[slot])
        return [arrays[slot] if slot in arrays else self._kept[slot].array for slot in slots]

    @property
    def takes_numpy(self) -> bool:
        """Whether programs are given numpy's arrays: the host's device takes over their memory in 5 us, not in 30."""
        return self.placement.device_set == {host_device()}

    def arguments(self, slots: Sequence[Slot]) -> list[Any]:
        """The variables' current values for a program; random generators as keys."""
        if not self.takes_numpy:
            return self.arrays(slots)
        return [self._in_numpy(slot) for slot in slots]

    def _in_numpy(self, slot: Slot) -> np.ndarray:
        if (loan := self._lent(slot)) is not None:
            return np.asarray(loan.array)
        mirror = self._current(slot)
        return value_of(slot) if mirror is None else mirror.whole

    def keep(self, slot: Slot, parts: Sequence[np.ndarray], whole: np.ndarray, array: jax.Array) -> None:
        """The variables of ``slot`` hold ``parts`` of ``whole``, and the devices ``array``."""
        is_same = _is_same_memory(array, whole)
        if is_same or isinstance(slot, Vector):
            self._kept[slot] = _Mirror(parts, whole, array if is_same else None)

    def drop(self, slots: Iterable[Slot]) -> None:
        """Let go of the memory of values that were just replaced."""
        for slot in slots:
            self._kept.pop(slot, None)

    def _lent(self, slot: Slot) -> Loan | None:
        loan = loan_of(slot)
        return loan if loan is not None and loan.array.sharding == self.placement else None

    def _current(self, slot: Slot) -> _Mirror | None:
        mirror = self._kept.get(slot)
        if mirror is not None and not all(map(operator.is_, mirror.parts, map(read, variables_of(slot)))):
            del self._kept[slot]
            return None
        return mirror


def value_of(slot: Slot) -> np.ndarray:
    """What the host has of a slot now, as the devices get it: a vector joined, of a generator a key."""
    if isinstance(slot, Vector):
        return slot.join({variable: read(variable) for variable in slot})
    value = read(slot)
    return key_of(value) if isinstance(value, np.random.Generator) else value


def placed(values: Sequence[Any], placement: Sharding) -> list[jax.Array]:
    """Values on the devices; a CPU's are the values' own memory where its alignment allows.

    What ``jax.device_put`` does, without the 80 us that it takes for a first array.
    """
    if not values:
        return []
    with to_devices():
        return [_placed(np.asarray(value), placement) for value in values]


def to_devices() -> AbstractContextManager[Any]:
    """Inside, copies to devices are asked for: no ``jax.transfer_guard`` of the caller's takes them for hidden ones."""
    return _unguarded(jax.config.jax_transfer_guard_host_to_device, jax.transfer_guard_host_to_device)


def to_host() -> AbstractContextManager[Any]:
    """``to_devices``, the other way."""
    return _unguarded(jax.config.jax_transfer_guard_device_to_host, jax.transfer_guard_device_to_host)


def _unguarded(guard: str | None, guarded: Callable[[str], AbstractContextManager[Any]]) -> AbstractContextManager[Any]:
    # A call takes JAX 15 us longer in a context of its own.
    return nullcontext() if guard in (None, "allow") else guarded("allow")


def _placed(value: np.ndarray, placement: Sharding) -> jax.Array:
    # The ellipsis makes an array of a 0-d value too, not a copied number.
    return jax.make_array_from_callback(value.shape, placement, lambda index: value[(*index, ...)])


def fetched(arrays: Sequence[jax.Array]) -> list[np.ndarray]:
    """Devices' arrays as read-only numpy arrays: their own memory on a CPU, copies elsewhere.

    Of an array that is cut over the devices of several ranks the rows of this rank's. What ``jax.device_get`` does,
    without the 50 us that it takes for a first array.
    """
    if not arrays:
        return []
    with to_host():
        if any(device.platform != "cpu" for device in arrays[0].devices()):
            for array in arrays:
                array.copy_to_host_async()  # all begin before the first is waited for
        return [_own_rows(array) for array in arrays]


def _own_rows(array: jax.Array) -> np.ndarray:
    if array.is_fully_addressable or array.is_fully_replicated:
        return np.asarray(array)
    shards = sorted(array.addressable_shards, key=lambda shard: shard.index[0].start or 0)
    return np.concatenate([np.asarray(shard.data) for shard in shards])


@functools.cache
def mesh_of(contexts: Contexts) -> Mesh:
    return Mesh(np.array(contexts.devices), (AXIS,))


@functools.cache
def on_every(contexts: Contexts) -> Sharding:
    """The whole of an array on every device."""
    return NamedSharding(mesh_of(contexts), PartitionSpec())


@functools.cache
def on_each(contexts: Contexts) -> Sharding:
    """An array cut along axis 0, a shard on each device."""
    return NamedSharding(mesh_of(contexts), PartitionSpec(AXIS))


def on_host() -> Sharding:
    return SingleDeviceSharding(host_device())


def _is_same_memory(array: jax.Array, value: np.ndarray) -> bool:
    """Never of several devices: to look at all of them takes longer than to place the value anew."""
    if not isinstance(value, np.ndarray) or not value.flags.c_contiguous or value.size == 0:
        return False
    devices = array.devices()
    return (
        len(devices) == 1
        and all(device.platform == "cpu" for device in devices)
        and array.unsafe_buffer_pointer() == value.ctypes.data
    )


def as_numpy(array: jax.Array, taken: set[int]) -> np.ndarray:
    """A device's result as a writable numpy array: its own memory on a CPU, a copy elsewhere.

    Plain functions may update the array in place, so it must be nobody else's: ``taken`` holds the addresses in use.
    """
    local = array.addressable_data(0)
    local.block_until_ready()  # the address is known, and readable, before what will be there
    (device,) = local.devices()
    address = local.unsafe_buffer_pointer() if device.platform == "cpu" and local.size else None
    if address is None or address in taken:
        return np.array(fetched([local])[0])
    taken.add(address)
    memory = (ctypes.c_char * local.nbytes).from_address(address)
    memory._owner = local  # keeps the buffer alive as long as the array
    return np.ndarray(local.shape, local.dtype, memory)
