"""A batch into shards, and shards into rounds: which examples each device takes, and when."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate

import jax
import numpy as np

from theano_mgpu.devices import Contexts
from theano_mgpu.mirror import on_each, placed

__all__ = ["Round", "parts", "place", "rounds"]


@dataclass(frozen=True)
class Round:
    """One shard per device, all of one size.

    ``shards`` are their numbers in the batch; a device without a shard of its own repeats the last one with weight 0.
    ``starts`` are the first examples of the shards; ``weights`` their parts of the batch.
    """

    size: int
    shards: tuple[int, ...]
    starts: tuple[int, ...]
    weights: tuple[float, ...]

    @functools.cached_property
    def live(self) -> int:
        """Devices with a shard of their own; they come first."""
        return sum(weight > 0 for weight in self.weights)


@functools.lru_cache(maxsize=64)  # which every call of a step asks for anew
def rounds(examples: int, shards: int, devices: int) -> tuple[Round, ...]:
    """Cut ``examples`` into ``shards`` of at most two sizes, larger ones first, and deal them to ``devices`` in turns.

    Shards that would be empty are left out. Shards of one size run together.
    """
    size, larger = divmod(examples, shards)
    sizes = [size + 1] * larger + [size] * (shards - larger if size else 0)
    starts = [0, *accumulate(sizes)]
    dealt = []
    for first, last in ((0, larger), (larger, len(sizes))):
        for begin in range(first, last, devices):
            own = list(range(begin, min(begin + devices, last)))
            numbers = own + [own[-1]] * (devices - len(own))
            dealt.append(
                Round(
                    size=sizes[begin],
                    shards=tuple(numbers),
                    starts=tuple(starts[i] for i in numbers),
                    weights=tuple(sizes[i] / examples for i in own) + (0.0,) * (devices - len(own)),
                )
            )
    return tuple(dealt)


def whole_batch_round(devices: int) -> Round:
    """The round of a step without split inputs: the first device computes, the others repeat it with weight 0."""
    return Round(0, (0,) * devices, (0,) * devices, (1.0,) + (0.0,) * (devices - 1))


def parts(batch: Sequence[np.ndarray], turn: Round, contexts: Contexts) -> list[np.ndarray]:
    """The round's part of every split input: the devices' shards, one after the other."""
    devices = len(contexts)
    if turn.live == devices:  # consecutive examples
        first = turn.starts[0]
        return [array[first : first + devices * turn.size] for array in batch]
    return [np.concatenate([array[s : s + turn.size] for s in turn.starts]) for array in batch]


def place(batch: Sequence[np.ndarray], turn: Round, contexts: Contexts) -> list[jax.Array]:
    """The round's part of every split input, one shard on each device."""
    return placed(parts(batch, turn, contexts), on_each(contexts))
