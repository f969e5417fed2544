"""Which shards of a batch this process computes, and in which rounds: all of them, or under mpirun its rank's part."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from pytensor.graph.basic import Variable

from theano_mgpu import split
from theano_mgpu.cut import Cut
from theano_mgpu.devices import Contexts
from theano_mgpu.split import Part, Round

__all__ = ["BoundBatch", "Dealing"]


class BoundBatch(dict[Variable, np.ndarray]):
    """The values of a step's inputs. ``lengths`` are the examples that each rank has, where each has its part alone."""

    def __init__(self, values: Mapping[Variable, np.ndarray], lengths: tuple[int, ...] | None = None) -> None:
        super().__init__(values)
        self.lengths = lengths


class Dealing:
    """Batches to rounds: this rank's own, or with ``of_all`` those that the devices of all ranks run together.

    With ``joint``, shards need each other's averages on the devices, and run all at once.
    """

    def __init__(self, step: str, cut: Cut, contexts: Contexts, *, split_over: str, joint: bool, of_all: bool) -> None:
        self._step = step
        self._cut = cut
        self._contexts = contexts
        self._joint = joint
        self._of_all = of_all
        self.by_ranks = split_over == "ranks" and contexts.cluster is not None

    def examples(self, batch: BoundBatch) -> int:
        """Of the whole batch, over all ranks."""
        if not self._cut.split:
            return 0
        return sum(batch.lengths) if batch.lengths else len(batch[self._cut.split[0]])

    def part(self, examples: int, shards: int, lengths: tuple[int, ...] | None = None) -> Part:
        """This rank's of a batch of ``examples``; ``lengths`` as in ``BoundBatch``."""
        counts = self._contexts.counts
        parts = (
            split.parts_given(lengths, shards, counts) if lengths else split.parts_of_batch(examples, shards, counts)
        )
        return parts[self._contexts.rank]

    def lengths(self, batch: BoundBatch, shards: int) -> list[int]:
        """Of each rank's part."""
        parts = split.parts_of_batch(self.examples(batch), shards, self._contexts.counts)
        return [part.examples for part in parts]

    def turns(self, examples: int, shards: int, lengths: tuple[int, ...] | None = None) -> Sequence[Round]:
        """The rounds; of all ranks' devices they begin, as this rank's own, where ``lengths`` says that its part does.

        Raises ValueError for lengths other than those of ``split.parts_of_batch``, where the devices of all ranks need
        them so, and for shards that cannot run at once.
        """
        devices = sum(self._contexts.counts) if self._of_all else len(self._contexts)
        if not self._cut.split:
            return [split.whole_batch_round(devices, takes_part=self._of_all or self._contexts.rank == 0)]
        if self._of_all:
            return self._rounds_of_all(examples, shards, devices, lengths)
        part = self.part(examples, shards, lengths)
        if part.examples == 0:
            return [split.idle_round(1 if self.by_ranks else -(-examples // shards), devices)]
        return split.rounds_of(part, devices, offset=0 if self.by_ranks else part.start)

    def own(self, turns: Sequence[Round]) -> Sequence[Round]:
        """Of the rounds what this rank's devices run."""
        if not self._of_all or self._contexts.cluster is None:
            return turns
        first = sum(self._contexts.counts[: self._contexts.rank])
        return [turn.of(slice(first, first + len(self._contexts))) for turn in turns]

    def whole(self, batch: BoundBatch, shards: int) -> tuple[BoundBatch, slice]:
        """The batch of all ranks, where each has its part, and where in it this rank's examples are.

        Raises ValueError for parts other than those of ``split.parts_of_batch``.
        """
        cluster = self._contexts.cluster
        if cluster is None or not self.by_ranks or not self._cut.split:
            return batch, slice(None)
        lengths = tuple(cluster.gathered(len(batch[self._cut.split[0]])))
        own = self._place_in_whole(lengths, shards, "this is compared with one device, which cuts the batch itself")
        whole = {v: np.concatenate(cluster.gathered(batch[v])) for v in self._cut.split}
        return BoundBatch(batch | whole), own

    def with_a_row(self, values: Mapping[Variable, np.ndarray]) -> dict[Variable, np.ndarray]:
        """Of a rank without data, which computes with weight 0 what the others compute: one example of zeros."""
        return {v: np.zeros((1, *a.shape[1:]), a.dtype) if v in self._cut.split else a for v, a in values.items()}

    def _rounds_of_all(
        self, examples: int, shards: int, devices: int, lengths: tuple[int, ...] | None
    ) -> Sequence[Round]:
        if self._joint and shards > devices:
            raise ValueError(
                f"{self._step}(): an average is needed again on the devices (synchronised batch norm), so all shards "
                f"must run at once, in one round, but {shards} shards take more on {devices} devices. Use "
                f"at most as many shards as devices; for a larger batch more devices, or tm.recompute(...)."
            )
        own = self._place_in_whole(
            lengths, shards, 'the devices of all ranks compute together (update_on="device" or synchronised batch norm)'
        )
        return split.rounds_of_all(examples, shards, devices, joint=self._joint, start=own.start or 0)

    def _place_in_whole(self, lengths: tuple[int, ...] | None, shards: int, why: str) -> slice:
        """Of this rank's examples in the whole batch. Raises ValueError where ranks gave it cut in another way."""
        if lengths is None:
            return slice(None)
        parts = split.parts_of_batch(sum(lengths), shards, self._contexts.counts)
        expected = tuple(part.examples for part in parts)
        if lengths != expected:
            raise ValueError(
                f"{self._step}(): the ranks gave {_listed(lengths)} examples, but {why}, and of {sum(lengths)} "
                f"examples in {shards} shards they should give {_listed(expected)}: each rank "
                f"batch[step.part(len(batch))] of the same batch."
            )
        own = parts[self._contexts.rank]
        return slice(own.start, own.stop)


def _listed(lengths: Sequence[int]) -> str:
    return ", ".join(map(str, lengths))
