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
    """Batches to rounds. With ``joint``, shards need each other's averages on the devices, and run all at once."""

    def __init__(self, step: str, cut: Cut, contexts: Contexts, *, split_over: str, joint: bool) -> None:
        self._step = step
        self._cut = cut
        self._contexts = contexts
        self._joint = joint
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
        """This rank's rounds."""
        devices = len(self._contexts)
        if not self._cut.split:
            return [split.whole_batch_round(devices, takes_part=self._contexts.rank == 0)]
        if self._joint:
            return [self._joint_round(examples, shards)]
        part = self.part(examples, shards, lengths)
        if part.examples == 0:
            return [split.idle_round(1 if self.by_ranks else -(-examples // shards), devices)]
        return split.rounds_of(part, devices, offset=0 if self.by_ranks else part.start)

    def with_a_row(self, values: Mapping[Variable, np.ndarray]) -> dict[Variable, np.ndarray]:
        """Of a rank without data, which computes with weight 0 what the others compute: one example of zeros."""
        return {v: np.zeros((1, *a.shape[1:]), a.dtype) if v in self._cut.split else a for v, a in values.items()}

    def _joint_round(self, examples: int, shards: int) -> Round:
        devices = len(self._contexts)
        if shards > devices:
            raise ValueError(
                f"{self._step}(): an average is needed again on the devices (synchronised batch norm), so all shards "
                f"must run at once, in one round, but {shards} shards take more on {devices} devices. Use "
                f"at most as many shards as devices; for a larger batch more devices, or tm.recompute(...)."
            )
        return split.joint_round(examples, shards, devices)
