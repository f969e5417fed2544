"""A batch into shards, and shards into rounds: which examples each device takes, and when."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Any

import jax
import numpy as np
from jax.sharding import Sharding

from theano_mgpu.devices import Contexts
from theano_mgpu.mirror import on_each, to_devices

__all__ = ["Round", "in_order", "place", "placement", "rounds", "whole_batch_round"]


@dataclass(frozen=True)
class Round:
    """One shard per device, all of one size.

    ``place`` is the place of these shards among their devices' own. ``shards`` are their numbers in the batch, and
    ``starts`` their first examples; ``weights`` are their parts of the batch. A device without a shard of its own
    repeats another's with weight 0.
    """

    place: int
    size: int
    shards: tuple[int, ...]
    starts: tuple[int, ...]
    weights: tuple[float, ...]

    @functools.cached_property
    def live(self) -> tuple[int, ...]:
        """The devices with a shard of their own."""
        return tuple(device for device, weight in enumerate(self.weights) if weight > 0)


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


def whole_batch_round(devices: int) -> Round:
    """The round of a step without split inputs: the first device computes, the others repeat it with weight 0."""
    return Round(0, 0, (0,) * devices, (0,) * devices, (1.0,) + (0.0,) * (devices - 1))


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
    """The rounds' results, (devices * size, ...) each, as one row for each example of the batch."""
    shards = {
        turn.shards[device]: rows[device * turn.size : (device + 1) * turn.size]
        for turn, rows in zip(turns, results, strict=True)
        for device in turn.live
    }
    return np.concatenate([shards[number] for number in sorted(shards)])


def _on_each(array: np.ndarray, turn: Round, placement: Sharding) -> jax.Array:
    def shard(index: tuple[slice, ...]) -> np.ndarray:
        start = turn.starts[(index[0].start or 0) // turn.size]
        return array[start : start + turn.size]

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
