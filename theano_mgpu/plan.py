"""What a step needs of memory and arithmetic, known before it runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from theano_mgpu.drawing.summary import size as in_words

__all__ = ["DeviceMemory", "HostMemory", "Plan", "held_gradients"]


@dataclass(frozen=True)
class DeviceMemory:
    """Bytes on one device while a step runs.

    ``parameters``: the shared variables that it mirrors or, with the update on the devices, updates.
    ``inputs``: its shards of the batch, of the rounds that are under way.
    ``activations``: what the forward pass leaves for the backward pass, and temporaries, by XLA's account.
    ``gradients``: what rounds give, and the partial sums of the tree.
    ``update``: new values and temporaries of the update, where that is on the devices.
    """

    parameters: int
    inputs: int
    activations: int
    gradients: int
    update: int

    @property
    def total(self) -> int:
        """At the most at a time: activations are gone when the update begins."""
        return self.parameters + self.inputs + self.gradients + max(self.activations, self.update)


@dataclass(frozen=True)
class HostMemory:
    """Bytes on the host while a step runs, the batch itself not counted.

    ``parameters``: all shared variables, the update rule's own with them. ``gradients``: the devices' sums, where they
    are copied. ``update``: new values and temporaries. ``page_locked``: buffers that the kernel may not move.
    """

    parameters: int
    gradients: int
    update: int
    page_locked: int

    @property
    def total(self) -> int:
        return self.parameters + self.gradients + self.update + self.page_locked


@dataclass(frozen=True)
class Plan:
    """What one step on a batch of ``batch_size`` examples needs; ``print(plan)`` shows a table.

    The batch is cut into ``shards`` of at most ``shard_size`` examples, which the devices take in ``rounds``.
    ``device`` is for each of ``contexts``, and ``limit`` what each may use (bytes). ``largest_shard`` is the greatest
    number of examples of a shard that fits. ``flops`` are floating-point operations of all devices together. ``total``
    are the bytes of devices and host together, where simulated devices have the host's parameters as their own.
    """

    batch_size: int
    shards: int
    shard_size: int
    rounds: int
    contexts: tuple[str, ...]
    device: DeviceMemory
    host: HostMemory
    limit: int
    largest_shard: int
    flops: float
    total: int

    @property
    def fits(self) -> bool:
        return self.device.total <= self.limit

    def __str__(self) -> str:
        shards = f"{self.shards} shard{'s' if self.shards > 1 else ''} of at most {self.shard_size}"
        rounds = f" in {self.rounds} rounds" if self.rounds > 1 else ""
        verdict = "fits" if self.fits else "does not fit"
        lines = [f"{self.batch_size} examples as {shards}{rounds} on {', '.join(self.contexts)}", "", "each device"]
        lines += _rows(self.device, ("parameters", "inputs", "activations", "gradients", "update", "total"))
        lines += [
            f"  {'limit':<12}{in_words(self.limit):>10}  {verdict}; largest shard {self.largest_shard}",
            "",
            "host",
        ]
        lines += _rows(self.host, ("parameters", "gradients", "update", "page_locked", "total"))
        return "\n".join([*lines, "", f"{self.flops / 1e9:,.1f} GFLOP a step"])


def held_gradients(rounds: int, ahead: int) -> int:
    """As many gradients as are there at a time: of rounds under way, and the tree's sums of those that are done."""
    return max(done.bit_count() + min(ahead + 1, rounds - done) for done in range(rounds))


def _rows(memory: DeviceMemory | HostMemory, names: Sequence[str]) -> list[str]:
    return [f"  {name.replace('_', '-'):<12}{in_words(getattr(memory, name)):>10}" for name in names]
