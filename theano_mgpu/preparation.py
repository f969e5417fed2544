"""A step's programs before they are called: compiled side by side, and what they need of memory."""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding
from pytensor.graph.basic import Variable
from pytensor.tensor.random.type import RandomType

from theano_mgpu import split
from theano_mgpu.cut import Cut
from theano_mgpu.devices import Contexts
from theano_mgpu.drawing.summary import size as in_words
from theano_mgpu.errors import DeviceMemoryError
from theano_mgpu.host_memory import host_memory
from theano_mgpu.launch import AHEAD, rounds_at_a_time
from theano_mgpu.lending import peek
from theano_mgpu.mirror import Mirrors, on_every
from theano_mgpu.pieces import bytes_on_each, pieces_like
from theano_mgpu.plan import DeviceMemory, HostMemory, Plan, held_gradients
from theano_mgpu.programs import DeviceProgram, ProgramMemory, UpdateProgram
from theano_mgpu.resident_data import ResidentData
from theano_mgpu.shares import Alone
from theano_mgpu.split import Round
from theano_mgpu.vectors import Slot, Vector

__all__ = ["LimitReached", "Preparation", "Shapes"]

#: Of a batch's inputs: shared variables have shapes of their own.
Shapes = Mapping[Variable, tuple[int, ...]]

# Of shards that are compiled to find the largest, and examples that it has at the most.
_MOST_SIZES, _LARGEST_SIZE = 5, 2**20

# Of a machine's memory that its simulated devices may use together; JAX gives a GPU's programs as much.
_USABLE = 0.75


class LimitReached(DeviceMemoryError):
    """As if a device's memory had run out: more is needed than its context was given."""


class Preparation:
    """Compiles a device program for each size of shards, and the update program once."""

    def __init__(
        self,
        cut: Cut,
        device: DeviceProgram,
        update: UpdateProgram,
        mirrored: Sequence[Slot],
        mirrors: tuple[Mirrors, Mirrors],
        contexts: Contexts,
        own: Contexts,
        shares: Alone,
        *,
        on_device: bool,
    ) -> None:
        self._cut = cut
        self._device = device
        self._update = update
        self._mirrored = mirrored
        self._mirrors, self._update_mirrors = mirrors
        self._contexts = contexts
        self._own = own  # of the contexts those of this process
        self._shares = shares
        self._on_device = on_device
        self._compiled: dict[Any, ProgramMemory] = {}
        self._compiling = threading.Lock()  # a thread that puts a batch may ask what it needs
        self._update_memory = ProgramMemory(0, 0, 0, 0)

    def prepare(self, turns: Sequence[Round], shapes: Shapes) -> None:
        """Compile what is new of both programs, at once: one by one they leave cores idle."""
        with self._compiling:
            new = {key: turn for turn in turns if (key := self._key(turn, shapes)) not in self._compiled}
            if not new:
                return
            lowered = {key: self._device.lower(turn, *self._like(turn, shapes)) for key, turn in new.items()}
            with ThreadPoolExecutor(1) as pool:
                update = None if self._compiled else pool.submit(self._update.compile, *self._update_like(shapes))
                compiled = {key: compile_program() for key, compile_program in lowered.items()}
            if update is not None and update.exception() is None:  # what is wrong with the rule, its call will say
                self._update_memory = update.result()
            self._compiled.update(compiled)

    def require_fit(self, turns: Sequence[Round], shapes: Shapes) -> None:
        """Raise LimitReached where a context was given less memory than the step needs."""
        limits = [context.limit for context in self._own if context.limit is not None]
        if limits and (needed := self.device_memory(turns, shapes).total) > min(limits):
            raise LimitReached(f"{in_words(needed)} are needed on each device, the limit is {in_words(min(limits))}.")

    def device_memory(self, turns: Sequence[Round], shapes: Shapes) -> DeviceMemory:
        """What each device needs; compiles what is new."""
        self.prepare(turns, shapes)
        programs = [self._compiled[self._key(turn, shapes)] for turn in turns]
        count, update = len(turns), self._update_memory
        slots = dict.fromkeys((*self._mirrored, *(self._update.shared if self._on_device else ())))
        return DeviceMemory(
            parameters=sum(map(self._size, slots)),
            inputs=max(program.inputs for program in programs) * min(count, AHEAD + 1),
            activations=max(program.temporary for program in programs) * rounds_at_a_time(count, self._contexts),
            gradients=max(program.results for program in programs) * held_gradients(count, AHEAD),
            update=update.results + update.temporary if self._on_device else 0,
        )

    def limit(self) -> int:
        """What each device may use: as given, as it reports, or its share of the machine's memory."""
        here = self._own.ranks[self._own.rank].host
        devices = sum(len(rank.names) for rank in self._own.ranks if rank.host == here)
        share = int(_USABLE * host_memory() / devices)
        return min(context.memory().get("bytes_limit", share) for context in self._own)

    def plan(self, examples: int, shards: int, turns: Sequence[Round], shapes: Shapes) -> Plan:
        device, host = self.device_memory(turns, shapes), self._host_memory()
        return Plan(
            batch_size=examples,
            shards=shards,
            shard_size=turns[0].size,
            rounds=len(turns),
            contexts=tuple(self._own.names),
            device=device,
            host=host,
            limit=self.limit(),
            largest_shard=self._largest_shard(turns, shapes),
            flops=sum(self._compiled[self._key(turn, shapes)].operations * len(turn.live) for turn in turns),
            total=self._together(device, host),
        )

    def _together(self, device: DeviceMemory, host: HostMemory) -> int:
        """Of the devices and the host, whose update begins when activations are gone."""
        devices = len(self._own)
        if self._contexts.platform != "cpu" or self._on_device:
            return devices * device.total + host.total
        at_a_time = max(devices * device.activations, host.update)
        # Mirrors are the host's own memory.
        return devices * (device.inputs + device.gradients) + at_a_time + host.parameters

    def _host_memory(self) -> HostMemory:
        everything = dict.fromkeys((*self._cut.device.shared, *self._cut.host.shared, *self._cut.updated))
        update, copied = self._update_memory, self._contexts.platform != "cpu" and not self._on_device
        results = max(program.results for program in self._compiled.values())
        return HostMemory(
            parameters=sum(bytes_on_each(_shared_like(slot)) for slot in everything),
            gradients=results * len(self._own) if copied else 0,
            update=0 if self._on_device else update.results + update.temporary,
            page_locked=0,
        )

    def _largest_shard(self, turns: Sequence[Round], shapes: Shapes) -> int:
        """By the line through what two sizes need, until the size where it meets the limit is one of them."""
        if not self._cut.split:
            return 0
        devices, limit = len(self._contexts), self.limit()

        def needed(size: int) -> int:
            (full,) = split.rounds(size * devices, devices, devices)
            return self.device_memory((full,) * len(turns), shapes).total

        size = turns[0].size
        found = {size: needed(size)}
        guess = size // 2 or 2
        while guess not in found and len(found) < _MOST_SIZES:
            found[guess] = needed(guess)
            low, high = sorted(sorted(found, key=lambda size: abs(found[size] - limit))[:2])
            grows = max((found[high] - found[low]) / (high - low), 1)
            guess = min(max(int(low + (limit - found[low]) // grows), 1), _LARGEST_SIZE)
        return max((size for size, need in found.items() if need <= limit), default=0)

    def _size(self, slot: Slot) -> int:
        if isinstance(slot, ResidentData):
            return bytes_on_each(pieces_like(slot, self._contexts))
        return bytes_on_each(_shared_like(slot))

    def _key(self, turn: Round, shapes: Shapes) -> Any:
        inputs = self._cut.device.inputs
        return turn.size, len(turn.parts), *(shapes[v][1:] if v in self._cut.split else shapes[v] for v in inputs)

    def _like(self, turn: Round, shapes: Shapes) -> tuple[list[Any], list[Any]]:
        """What stands for the device program's inputs and shared variables."""
        devices, on_all = len(self._contexts), on_every(self._contexts)
        each = split.placement(self._contexts)
        inputs = [
            [_like((devices * part.size, *shapes[v][1:]), v, each) for part in turn.parts]
            if v in self._cut.split
            else [_like(shapes[v], v, on_all)] * len(turn.parts)
            for v in self._cut.device.inputs
        ]
        return inputs, [
            pieces_like(slot, self._contexts)
            if isinstance(slot, ResidentData)
            else _shared_like(slot, _sharding_in(self._mirrors))
            for slot in self._mirrored
        ]

    def _update_like(self, shapes: Shapes) -> tuple[list[Any], ...]:
        rows = self._shares.rows_like(self._device.values_like)
        whole = [_like(shapes[v], v, self._update_mirrors.placement) for v in self._update.whole]
        shared = [_shared_like(slot, _sharding_in(self._update_mirrors)) for slot in self._update.shared]
        own = self._shares.own_like(self._update.shared, shared)
        return rows, whole, own, self._shares.memory_like


def _like(shape: tuple[int, ...], variable: Variable, placement: Sharding | None) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(shape, np.dtype(variable.type.dtype), sharding=placement)


def _sharding_in(mirrors: Mirrors) -> Sharding | None:
    return None if mirrors.takes_numpy else mirrors.placement


def _shared_like(slot: Slot, placement: Sharding | None = None) -> jax.ShapeDtypeStruct:
    if isinstance(slot, Vector):
        return jax.ShapeDtypeStruct((slot.size,), np.dtype(slot.dtype), sharding=placement)
    if isinstance(slot.type, RandomType):
        return jax.ShapeDtypeStruct((2,), np.dtype("uint32"), sharding=placement)  # a key
    return _like(peek(slot).shape, slot, placement)
