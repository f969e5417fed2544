"""A batch into shards, and shards into rounds: which examples each device takes, and when."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import accumulate, pairwise
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from theano_mgpu.devices import Contexts
from theano_mgpu.mirror import on_each, to_devices

__all__ = [
    "Part",
    "Round",
    "idle_round",
    "in_order",
    "joint_round",
    "parts_given",
    "parts_of_batch",
    "place",
    "placement",
    "rounds",
    "rounds_of",
    "rounds_of_all",
    "whole_batch_round",
]


@dataclass(frozen=True)
class Round:
    """One shard per device, all of one size.

    ``place`` is the place of these shards among their devices' own. ``shards`` are their numbers in the batch, and
    ``starts`` their first examples; ``weights`` are their parts of the batch. A device without a shard of its own
    repeats another's with weight 0. ``rest``, of shards that need each other's averages, is what they do not divide:
    the devices run it at the same time.
    """

    place: int
    size: int
    shards: tuple[int, ...]
    starts: tuple[int, ...]
    weights: tuple[float, ...]
    rest: Round | None = None

    @property
    def parts(self) -> tuple[Round, ...]:
        """What a device runs at a time."""
        return (self,) if self.rest is None else (self, self.rest)

    def of(self, devices: slice) -> Round:
        """What some of the devices run."""
        rest = self.rest and self.rest.of(devices)
        return replace(
            self, shards=self.shards[devices], starts=self.starts[devices], weights=self.weights[devices], rest=rest
        )

    def counted_from(self, start: int) -> Round:
        """The same where example ``start`` of the batch is the first that is there; those before it are negative."""
        rest = self.rest and self.rest.counted_from(start)
        return replace(self, starts=tuple(own - start for own in self.starts), rest=rest)

    @functools.cached_property
    def live(self) -> tuple[int, ...]:
        """The devices with a shard of their own."""
        return tuple(device for device, weight in enumerate(self.weights) if weight > 0)


@dataclass(frozen=True)
class Part:
    """What one rank computes of a batch: ``examples`` from ``start`` on, cut into ``shards``.

    ``first_shard`` is the number of the first of these in the whole batch, which has ``total`` examples.
    """

    start: int
    examples: int
    first_shard: int
    shards: int
    total: int

    @property
    def stop(self) -> int:
        return self.start + self.examples


@functools.lru_cache(maxsize=64)
def parts_of_batch(examples: int, shards: int, counts: tuple[int, ...]) -> tuple[Part, ...]:
    """Of a batch of ``examples`` in ``shards`` each rank's part, for ranks of so many devices each.

    The devices of all ranks take neighbouring shards in their order, as those of one rank do, so each rank has the
    shards that its devices would have if all were one rank's.
    """
    starts = [0, *accumulate(_sizes(examples, shards))]
    return tuple(
        Part(starts[first], starts[first + count] - starts[first], first, count, examples)
        for first, count in _shards_of_ranks(shards, counts)
    )


@functools.lru_cache(maxsize=64)
def parts_given(lengths: tuple[int, ...], shards: int, counts: tuple[int, ...]) -> tuple[Part, ...]:
    """Of a batch of which each rank has so many examples already: every rank cuts its own into its shards.

    Where the lengths are those of ``parts_of_batch``, so are the parts, for powers of two of shards and devices.
    """
    starts = [0, *accumulate(lengths)]
    return tuple(
        Part(start, length, first, max(count, 1), starts[-1])
        for start, length, (first, count) in zip(starts, lengths, _shards_of_ranks(shards, counts), strict=False)
    )


def _shards_of_ranks(shards: int, counts: tuple[int, ...]) -> list[tuple[int, int]]:
    """Of each rank the number of its first shard, and how many it has."""
    places = -(-shards // sum(counts))
    ends = [min(places * devices, shards) for devices in accumulate(counts, initial=0)]
    return [(first, end - first) for first, end in pairwise(ends)]


@functools.lru_cache(maxsize=64)
def rounds_of(part: Part, devices: int, *, offset: int) -> tuple[Round, ...]:
    """``rounds`` of a rank's part: shards are numbered in the whole batch, of which each has its weight.

    ``offset`` is where the part begins in the arrays that the rank has.
    """
    return tuple(
        replace(
            turn,
            shards=tuple(part.first_shard + number for number in turn.shards),
            starts=tuple(offset + start for start in turn.starts),
            weights=tuple(turn.size / part.total if weight else 0.0 for weight in turn.weights),
        )
        for turn in rounds(part.examples, part.shards, devices)
    )


def idle_round(size: int, devices: int) -> Round:
    """The round of a rank that has no shard: it repeats the first examples with weight 0."""
    return Round(0, size, (0,) * devices, (0,) * devices, (0.0,) * devices)


@functools.lru_cache(maxsize=64)  # which every call of a step asks for anew
def rounds(examples: int, shards: int, devices: int) -> tuple[Round, ...]:
    """Cut ``examples`` into ``shards`` of at most two sizes, and deal each device its part of them, in order.

    A device has neighbouring shards, so that their sum is a branch of the tree in which all are summed. What a shard
    holds does not depend on the number of devices. Shards that would be empty are left out. Shards of two sizes in one
    place take two rounds: in all one more than there are places, where those are a power of two.
    """
    places = -(-shards // devices)
    sizes = _sizes(examples, shards)
    starts = [0, *accumulate(sizes)]
    dealt = []
    for place in range(places):
        own = {d: number for d in range(devices) if (number := d * places + place) < shards}
        for size in sorted({sizes[number] for number in own.values()} - {0}, reverse=True):
            live = {d: number for d, number in own.items() if sizes[number] == size}
            numbers = [live.get(d, next(iter(live.values()))) for d in range(devices)]
            dealt.append(
                Round(
                    place=place,
                    size=size,
                    shards=tuple(numbers),
                    starts=tuple(starts[number] for number in numbers),
                    weights=tuple(size / examples if d in live else 0.0 for d in range(devices)),
                )
            )
    return tuple(dealt)


@functools.lru_cache(maxsize=64)
def rounds_of_all(examples: int, shards: int, devices: int, *, joint: bool, start: int) -> tuple[Round, ...]:
    """The rounds of the devices of all ranks together, for a rank that has the batch from example ``start`` on."""
    turns = (joint_round(examples, shards, devices),) if joint else rounds(examples, shards, devices)
    return tuple(turn.counted_from(start) for turn in turns) if start else turns


@functools.lru_cache(maxsize=64)
def joint_round(examples: int, shards: int, devices: int) -> Round:
    """One round for all of a batch, cut as by ``rounds``: a shard on each of the first devices.

    Shards of two sizes cannot run in one program, but shards of one size can, and beside them the last example of each
    that is larger.
    """
    size = examples // shards
    sizes = _sizes(examples, shards)
    starts = [0, *accumulate(sizes)]
    last = {d: starts[d] + size for d in range(shards) if sizes[d] > size}
    if size == 0:
        return _on_devices(last, 1, 0, examples, devices)
    rest = _on_devices(last, 1, shards, examples, devices) if last else None
    return replace(_on_devices(dict(enumerate(starts[:shards])), size, 0, examples, devices), rest=rest)


def _on_devices(starts: dict[int, int], size: int, number: int, examples: int, devices: int) -> Round:
    """Shards of ``size`` examples, numbered from ``number`` on, by the devices that have one."""
    numbers = {device: number + i for i, device in enumerate(starts)}
    own = [device if device in starts else next(iter(starts)) for device in range(devices)]
    return Round(
        place=0,
        size=size,
        shards=tuple(numbers[device] for device in own),
        starts=tuple(starts[device] for device in own),
        weights=tuple(size / examples if device in starts else 0.0 for device in range(devices)),
    )


def whole_batch_round(devices: int, *, takes_part: bool = True) -> Round:
    """The round of a step without split inputs: the first device computes, all others repeat it with weight 0."""
    return Round(0, 0, (0,) * devices, (0,) * devices, (float(takes_part),) + (0.0,) * (devices - 1))


def placement(contexts: Contexts) -> Sharding | None:
    """Where ``place`` puts shards; None where it leaves them numpy arrays.

    One simulated device takes those over in the call itself, sooner than they could be placed.
    """
    return None if len(contexts) == 1 and contexts.platform == "cpu" else on_each(contexts)


def place(batch: Sequence[np.ndarray], turn: Round, contexts: Contexts) -> list[Any]:
    """The round's part of every split input, one shard on each device."""
    where = placement(contexts)
    if where is None:
        return [array[turn.starts[0] : turn.starts[0] + turn.size] for array in batch]
    with to_devices():
        return [_on_each(array, turn, where) for array in batch]


def in_order(turns: Sequence[Round], results: Sequence[np.ndarray]) -> np.ndarray:
    """The results of rounds and their rests, (devices * size, ...) each, as one row for each example of the batch."""
    shards = {
        turn.starts[device]: rows[device * turn.size : (device + 1) * turn.size]
        for turn, rows in zip([part for turn in turns for part in turn.parts], results, strict=True)
        for device in turn.live
    }
    if not shards:  # of a rank that has none
        return results[0][:0]
    return np.concatenate([shards[start] for start in sorted(shards)])


def _on_each(array: np.ndarray, turn: Round, placement: Sharding) -> jax.Array:
    def shard(index: tuple[slice, ...]) -> np.ndarray:
        device = (index[0].start or 0) // turn.size
        start = turn.starts[device]
        if turn.weights[device] or 0 <= start <= len(array) - turn.size:
            return array[start : start + turn.size]
        return np.zeros((turn.size, *array.shape[1:]), array.dtype)  # for another rank's, repeated with weight 0

    return jax.make_array_from_callback((len(turn.starts) * turn.size, *array.shape[1:]), placement, shard)


def _sizes(examples: int, shards: int) -> list[int]:
    """The shards' sizes. Those with one example more are spread by their numbers read backwards in binary.

    So on any power of two of devices all but one place have shards of one size.
    """
    size, larger = divmod(examples, shards)
    bits = (shards - 1).bit_length()
    spread = sorted(range(shards), key=lambda number: f"{number:0{bits}b}"[::-1])
    first = set(spread[:larger])
    return [size + (number in first) for number in range(shards)]
