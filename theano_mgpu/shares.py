"""Who updates what: one process all of it, or each of several ranks its piece of every vector.

The new values that devices read go to all ranks.

Of what the update rule alone reads, such as velocities, a rank keeps its piece and no more (Rajbhandari et al., "ZeRO:
Memory optimizations toward training trillion parameter models", 2020, stage 1). It is lent: whoever asks for such a
variable's value gets the other pieces from the ranks that have them.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding
from pytensor.compile.sharedvalue import SharedVariable

from theano_mgpu.bundles import Bundled
from theano_mgpu.cluster import Cluster
from theano_mgpu.commit import NewValue, addresses_of, new_values, non_finite
from theano_mgpu.devices import Contexts
from theano_mgpu.finite import are_finite, is_finite
from theano_mgpu.gather.host import rows_like, rows_on_host
from theano_mgpu.gather.memory import Memory
from theano_mgpu.gather.ranks import SMALL, RankGather, length, pieces, spread, with_piece
from theano_mgpu.lending import are_lendable
from theano_mgpu.mirror import as_numpy, on_each, placed
from theano_mgpu.vectors import Slot, Vector, variables_of

__all__ = ["Alone", "Shares"]


class Alone:
    """A step's update by one process, which has all of it: on the host, or on the devices."""

    def __init__(self, bundled: Bundled, contexts: Contexts, *, on_device: bool, lending: bool) -> None:
        self._bundled = bundled
        self._contexts = contexts
        self._on_device = on_device
        self._lending = lending
        #: Of new values that are written into memory for the whole: where this process's piece begins there.
        self.starts: dict[Slot, int] = {}
        #: The shapes of ``memory``, which has one for each of them.
        self.memory_like: list[jax.ShapeDtypeStruct] = []

    def own_sums(self, values: Sequence[jax.Array]) -> list[list[Any]]:
        """The rows of ``values``, (devices, ...), that this process has."""
        return [[value] for value in values] if self._on_device else rows_on_host(values)

    def rows(self, own: list[list[Any]]) -> list[list[Any]]:
        """What the update program combines."""
        return own

    def rows_like(self, values: Sequence[jax.ShapeDtypeStruct]) -> list[list[jax.ShapeDtypeStruct]]:
        """The shapes of ``rows``, before there are any values."""
        if not self._on_device:
            return rows_like(values, self._contexts)
        each = on_each(self._contexts)
        return [[jax.ShapeDtypeStruct(value.shape, value.dtype, sharding=each)] for value in values]

    def own(self, slots: Sequence[Slot], arrays: Sequence[Any]) -> list[Any]:
        """What the update program takes of shared variables' values."""
        return list(arrays)

    def own_like(self, slots: Sequence[Slot], like: Sequence[jax.ShapeDtypeStruct]) -> list[jax.ShapeDtypeStruct]:
        """The shapes of ``own``."""
        return list(like)

    def memory(self) -> list[jax.Array]:
        """What the update program writes new values into, of those that have ``starts``; it is donated."""
        return []

    def wanted_whole(self) -> list[bool]:
        """Which new values this process needs whole."""
        return [True] * len(self._bundled.updated)

    def new_values(
        self, arrays: Sequence[jax.Array], shared: Sequence[SharedVariable], whole: Sequence[bool]
    ) -> list[NewValue]:
        """The slots' new values; ``shared`` are variables whose memory is still needed."""
        return new_values(self._bundled.updated, arrays, shared, lending=self._lending)

    def non_finite(self, values: Sequence[NewValue], flags: Sequence[jax.Array]) -> list[int]:
        """Whose new value is not finite in this process's part, by the numbers of the variables in ``updated``."""
        return non_finite(values, flags)

    def place(self, value: NewValue) -> slice | None:
        """Where ``value.array`` is a piece of the whole; None where it is all of it."""
        return None

    def offer(self, values: Sequence[NewValue]) -> None:
        """To others, what was just committed; there are none."""


class Shares(Alone):
    """The update shared out among ranks: ``placement`` is where a rank has its part, ``read`` what devices read."""

    def __init__(
        self,
        cluster: Cluster,
        bundled: Bundled,
        contexts: Contexts,
        placement: Sharding,
        read: Collection[SharedVariable],
    ) -> None:
        super().__init__(bundled, contexts, on_device=False, lending=False)
        self._cluster = cluster
        self._placement = placement
        self._memory = Memory()
        self._updated = bundled.updated
        needed = {*bundled.rest.inputs, *bundled.rest.shared}
        rows = [row for bundle in bundled.bundles for row in bundle.rows if _can_be_shared(row, needed)]
        self._vectors = dict.fromkeys(vector for row in rows for vector in row)
        self._in_vectors = {variable for vector in self._vectors for variable in vector}
        # Parameters of a store are for everybody to read.
        self._state = {
            slot for slot in self._vectors if not any(v in read or hasattr(v.tag, "trainable") for v in slot)
        }
        for slot in self._updated:
            if slot in self._vectors and length(place := self._place(slot)):
                start, size = (0, length(place)) if slot in self._state else (place.start, slot.size)
                self.starts[slot] = start
                self.memory_like.append(jax.ShapeDtypeStruct((size,), np.dtype(slot.dtype), sharding=placement))
        self._offers = {slot: cluster.offer() for slot in self._vectors}
        in_pieces = [slot in self._vectors for slot in bundled.gathered]
        self._gather = RankGather(cluster, bundled.kinds, in_pieces)

    def own_sums(self, values: Sequence[jax.Array]) -> list[list[Any]]:
        return self._gather.own_sums(values)

    def rows(self, own: list[list[Any]]) -> list[list[Any]]:
        return self._gather.rows(own)

    def rows_like(self, values: Sequence[jax.ShapeDtypeStruct]) -> list[list[jax.ShapeDtypeStruct]]:
        return self._gather.rows_like(values)

    def own(self, slots: Sequence[Slot], arrays: Sequence[Any]) -> list[Any]:
        """Of what is updated in pieces this rank's; of an array that is lent it is all that there is."""
        return [
            self._piece(slot, array) if slot in self._vectors else array
            for slot, array in zip(slots, arrays, strict=True)
        ]

    def own_like(self, slots: Sequence[Slot], like: Sequence[jax.ShapeDtypeStruct]) -> list[jax.ShapeDtypeStruct]:
        """The shapes of ``own``."""
        return [
            jax.ShapeDtypeStruct((length(self._place(slot)),), value.dtype) if slot in self._vectors else value
            for slot, value in zip(slots, like, strict=True)
        ]

    def memory(self) -> list[jax.Array]:
        return [self._memory.lent(like.size, like.dtype) for like in self.memory_like]

    def wanted_whole(self) -> list[bool]:
        """Which new values this rank needs whole: what is no mere state, or is read by who does not ask for it."""
        return [slot not in self._state or not are_lendable(variables_of(slot)) for slot in self._updated]

    def new_values(
        self, arrays: Sequence[jax.Array], shared: Sequence[SharedVariable], whole: Sequence[bool]
    ) -> list[NewValue]:
        """``whole`` where any rank wants it so, else a piece that is lent."""
        taken = addresses_of([variable for variable in shared if variable not in self._in_vectors])
        values, wholes = [], []
        for slot, array, is_wanted in zip(self._updated, arrays, whole, strict=True):
            if slot not in self._vectors:
                values.append(NewValue(slot, array, as_numpy(array, taken)))
                continue
            own = self._memory.kept(array) if slot in self.starts else np.asarray(array)
            if is_wanted and own.size < slot.size:
                own = with_piece(self._cluster, self._memory.vector(slot.size, slot.dtype), own)
            if is_wanted:
                wholes.append(own)
                values.append(NewValue(slot, array, own))
            else:
                (lent,) = placed([own], self._placement)
                values.append(NewValue(slot, lent, None, self._whole_of(slot)))
        spread(self._cluster, wholes)
        self._memory.settle()
        return values

    def non_finite(self, values: Sequence[NewValue], flags: Sequence[jax.Array]) -> list[int]:
        parts = [self._own_part(value) for value in values]
        found, number = [], 0
        for value, part, ok in zip(values, parts, are_finite(parts), strict=True):
            slot = value.slot
            if not ok and isinstance(slot, Vector):
                start = self._place(slot).start if slot in self._vectors else 0
                overlaps = [slot.overlap(variable, start, part) for variable in slot]
                found += [number + i for i, overlap in enumerate(overlaps) if not is_finite(overlap)]
            elif not ok:
                found.append(number)
            number += len(variables_of(slot))
        return found

    def place(self, value: NewValue) -> slice | None:
        return self._place(value.slot) if value.host is None else None

    def offer(self, values: Sequence[NewValue]) -> None:
        for value in values:
            if value.host is None:
                self._cluster.put_on_offer(self._offers[value.slot], np.asarray(value.array))

    def _own_part(self, value: NewValue) -> np.ndarray:
        """What this rank has computed of a new value."""
        if value.host is None:
            return np.asarray(value.array)
        return value.host[self._place(value.slot)] if value.slot in self._vectors else value.host

    def _whole_of(self, slot: Vector) -> Any:
        """What makes a whole of this rank's piece."""

        def whole(piece: Any) -> np.ndarray:
            own = np.asarray(piece)
            found = with_piece(self._cluster, Memory().vector(slot.size, own.dtype), own)
            where = pieces(slot.size, own.dtype, self._cluster.size)
            self._cluster.fetch(self._offers[slot], {rank: found[place] for rank, place in enumerate(where)})
            return found

        return whole

    def _piece(self, slot: Vector, array: jax.Array) -> np.ndarray:
        """Always numpy's: for JAX's arrays the program would be compiled once more."""
        own = np.asarray(array)
        return own[self._place(slot)] if len(own) == slot.size else own

    def _place(self, slot: Vector) -> slice:
        """Of this rank's piece."""
        return pieces(slot.size, slot.dtype, self._cluster.size)[self._cluster.rank]


def _can_be_shared(row: Sequence[Vector], whole: set[Any]) -> bool:
    """Nothing but the elementwise rule reads the vectors, and there is enough of them."""
    return all(vector.size * np.dtype(vector.dtype).itemsize >= SMALL and whole.isdisjoint(vector) for vector in row)
