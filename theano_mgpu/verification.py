"""``verify``: the same step on one device and on all, compared bit by bit, mirrors against the host, and ranks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable

from theano_mgpu.cluster import together
from theano_mgpu.drawing.summary import plural
from theano_mgpu.errors import DivergenceError
from theano_mgpu.first_values import digest
from theano_mgpu.mirror import fetched, value_of
from theano_mgpu.step import Attempt, Step
from theano_mgpu.vectors import Slot, Vector, parts_of, variables_of

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """What was compared, and found the same to the bit."""

    contexts: tuple[str, ...]
    shards: int
    mirrored: int
    outputs: int
    new_values: int
    ranks: int = 1

    def __str__(self) -> str:
        ranks = f"; {self.ranks} ranks hold the same values" if self.ranks > 1 else ""
        return (
            f"the same bits on {self.contexts[0]} alone and on {', '.join(self.contexts)}, in {self.shards} shards: "
            f"{plural(self.outputs, 'output')} and {plural(self.new_values, 'new value')}; "
            f"mirrors of {plural(self.mirrored, 'variable')} hold the host's values{ranks}"
        )


def verify(step: Step, batch: Any) -> Verification:
    """Compute one step on one device and on all of them, without taking it, and compare every bit.

    step: what ``tm.function`` gave. batch: the arguments of a call, a tuple, a list, or a dict by name.

    Also compared: what every device mirrors with what the host has, and the devices' new values among themselves.
    Under mpirun all ranks call it: first the checksum of every shared variable is compared between them, then each
    compares its first device alone with all devices of all ranks.
    Nothing is changed. Returns what was compared. Raises DivergenceError naming the first variable that differs and
    where, RankError where another rank found it; ValueError where bits are not promised: for numbers of devices or
    shards that are no powers of two, for ranks of different numbers of devices, and for a step with synchronised batch
    norm, which one device cannot take.
    """
    if not isinstance(step, Step):
        raise TypeError(f"verify(): 'step' should be what tm.function returned, not {step!r}.")
    arguments, named = ((), batch) if isinstance(batch, Mapping) else (batch, {})
    if not isinstance(arguments, Sequence) or isinstance(arguments, np.ndarray | str):
        raise TypeError(f"verify(): 'batch' should be a tuple, list or dict of the step's inputs, not {batch!r}.")
    contexts = step.contexts
    _compare_ranks(step)
    on_all = step.attempt(*arguments, **named)
    _require_promised(step)
    with together(contexts.cluster, f"while it verified the mirrors of {step.name}"):
        mirrored = _compare_mirrors(step)  # before one device alone asks for what is lent
    on_one = step.attempt_alone(*arguments, **named)
    with together(contexts.cluster, f"while it verified {step.name}"):
        _compare_attempts(step, on_one, on_all)
    names, outputs = tuple(contexts.names), len(on_all.outputs)
    return Verification(names, step.shards, mirrored, outputs, len(step.cut.updated), len(contexts.ranks))


def _compare_ranks(step: Step) -> None:
    """What the ranks' shared variables hold: the fewer differ from the others, or from rank 0."""
    if (cluster := step.contexts.cluster) is None:
        return
    variables = step.get_shared()
    everyone = cluster.gathered([digest(variable.get_value(borrow=True)) for variable in variables])
    for variable, found in zip(variables, zip(*everyone, strict=True), strict=True):
        (usual, _), *others = Counter(found).most_common()  # of equally many the first
        if others:
            ranks = list(zip(step.contexts.ranks, found, strict=True))
            differ = " and ".join(str(rank) for rank, own in ranks if own != usual)
            usual_rank = next(str(rank) for rank, own in ranks if own == usual)
            raise DivergenceError(
                f"verify(): {_name(variable)} is on {differ} not what it is on {usual_rank}. Ranks hold the same while "
                f"each changes its values as the others do: by steps of all ranks, and set_value(...) of one value."
            )


def _compare_attempts(step: Step, on_one: Attempt, on_all: Attempt) -> None:
    one = f"{step.contexts.names[0]} alone"
    for position, (first, second) in enumerate(zip(on_one.outputs, on_all.outputs, strict=True)):
        _require_same(f"output {position}", first, second, one, "all devices")
    for one_value, all_value in zip(on_one.new_values or (), on_all.new_values or (), strict=True):
        slot = all_value.slot
        names = [_name(variable) for variable in variables_of(slot)]
        whole, place = fetched([one_value.array])[0], step.place_of(all_value)
        expected = _parts(slot, whole[place] if place else whole, place.start if place else 0)
        for context, copy in zip(step.contexts.names, _copies(all_value.array), strict=False):
            parts = _parts(slot, copy, place.start if place else 0)
            for name, mine, other in zip(names, expected, parts, strict=True):
                _require_same(f"the new value of {name}", mine, other, one, f"{context} with all devices")


def _parts(slot: Slot, array: np.ndarray, start: int) -> list[np.ndarray]:
    """Of the slot's array from ``start`` on what is each variable's."""
    return [slot.overlap(variable, start, array) for variable in slot] if isinstance(slot, Vector) else [array]


def _require_promised(step: Step) -> None:
    counts = step.contexts.counts
    if step.needs_one_round and sum(counts) > 1:
        raise ValueError(
            f"verify(): {step.name} needs an average again on the devices (synchronised batch norm), so its shards "
            f"must run at once, and one device alone cannot take the same step. Verify the step without sync=True, "
            f"and compare the other with plain pytensor.function on the whole batch."
        )
    if len(set(counts)) > 1:
        raise ValueError(
            f"verify(): the ranks have {' and '.join(map(str, counts))} devices; bits are promised for equal "
            f"numbers, and others give the same result to rounding."
        )
    for what, count in (("devices", sum(counts)), ("shards", step.shards)):
        if count & (count - 1):
            raise ValueError(
                f"verify(): {step.name} has {count} {what}; bits are promised for powers of two alone, and other "
                f"numbers give the same result to rounding."
            )


def _compare_mirrors(step: Step) -> int:
    mirrors = step.mirrored()
    for slot, array in mirrors.items():
        host = value_of(slot)
        names = [_name(variable) for variable in variables_of(slot)]
        for context, copy in zip(step.contexts.names, _copies(array), strict=False):
            for name, mine, other in zip(names, parts_of(slot, host), parts_of(slot, copy), strict=True):
                _require_same(f"the mirror of {name}", mine, other, "the host", context)
    return sum(len(variables_of(slot)) for slot in mirrors)


def _copies(array: Any) -> list[np.ndarray]:
    return fetched([shard.data for shard in array.addressable_shards])


def _require_same(what: str, first: np.ndarray, second: np.ndarray, one: str, other: str) -> None:
    first, second = np.asarray(first), np.asarray(second)
    if first.shape == second.shape and first.dtype == second.dtype and first.tobytes() == second.tobytes():
        return
    detail = f"shapes {first.shape} and {second.shape}"
    if first.shape == second.shape:
        differ = int((_bits(first) != _bits(second)).any(axis=-1).sum())
        detail = f"{differ} of {first.size} entries"
        if first.dtype.kind == "f":
            detail += f", by {np.nanmax(np.abs(first - second), initial=0):.2g} at the most"
    raise DivergenceError(f"verify(): {what} differs between {one} and {other}: {detail}. Nothing was changed.")


def _bits(array: np.ndarray) -> np.ndarray:
    """(entries, bytes of an entry)"""
    return np.frombuffer(array.tobytes(), np.uint8).reshape(array.size, array.itemsize)


def _name(variable: SharedVariable) -> str:
    return str(variable.name or variable)
