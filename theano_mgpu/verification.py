"""``verify``: the same step on one device and on all, compared bit by bit, and mirrors against the host."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable

from theano_mgpu.drawing.summary import plural
from theano_mgpu.errors import DivergenceError
from theano_mgpu.mirror import fetched, value_of
from theano_mgpu.step import Step
from theano_mgpu.vectors import parts_of, variables_of

__all__ = ["Verification", "verify"]


@dataclass(frozen=True)
class Verification:
    """What was compared, and found the same to the bit."""

    contexts: tuple[str, ...]
    shards: int
    mirrored: int
    outputs: int
    new_values: int

    def __str__(self) -> str:
        return (
            f"the same bits on {self.contexts[0]} alone and on {', '.join(self.contexts)}, in {self.shards} shards: "
            f"{plural(self.outputs, 'output')} and {plural(self.new_values, 'new value')}; "
            f"mirrors of {plural(self.mirrored, 'variable')} hold the host's values"
        )


def verify(step: Step, batch: Any) -> Verification:
    """Compute one step on one device and on all of them, without taking it, and compare every bit.

    step: what ``tm.function`` gave. batch: the arguments of a call, a tuple, a list, or a dict by name.

    Also compared: what every device mirrors with what the host has, and the devices' new values among themselves.
    Nothing is changed. Returns what was compared. Raises DivergenceError naming the first variable that differs and
    where; ValueError where bits are not promised: for numbers of devices or shards that are no powers of two, and for
    a step with synchronised batch norm, which one device cannot take.
    """
    if not isinstance(step, Step):
        raise TypeError(f"verify(): 'step' should be what tm.function returned, not {step!r}.")
    arguments, named = ((), batch) if isinstance(batch, Mapping) else (batch, {})
    if not isinstance(arguments, Sequence) or isinstance(arguments, np.ndarray | str):
        raise TypeError(f"verify(): 'batch' should be a tuple, list or dict of the step's inputs, not {batch!r}.")
    on_all = step.attempt(*arguments, **named)
    _require_promised(step)
    mirrored = _compare_mirrors(step)
    on_one = step.over(step.contexts[:1]).attempt(*arguments, **named)
    one = f"{step.contexts.names[0]} alone"
    for position, (first, second) in enumerate(zip(on_one.outputs, on_all.outputs, strict=True)):
        _require_same(f"output {position}", first, second, one, "all devices")
    for one_value, all_value in zip(on_one.new_values or (), on_all.new_values or (), strict=True):
        parts = parts_of(one_value.slot, fetched([one_value.array])[0])
        names = [_name(variable) for variable in variables_of(one_value.slot)]
        for context, copy in zip(step.contexts.names, _copies(all_value.array), strict=False):
            for name, mine, other in zip(names, parts, parts_of(all_value.slot, copy), strict=True):
                _require_same(f"the new value of {name}", mine, other, one, f"{context} with all devices")
    return Verification(tuple(step.contexts.names), step.shards, mirrored, len(on_all.outputs), len(step.cut.updated))


def _require_promised(step: Step) -> None:
    if step.needs_one_round and len(step.contexts) > 1:
        raise ValueError(
            f"verify(): {step.name} needs an average again on the devices (synchronised batch norm), so its shards "
            f"must run at once, and one device alone cannot take the same step. Verify the step without sync=True, "
            f"and compare the other with plain pytensor.function on the whole batch."
        )
    for what, count in (("devices", len(step.contexts)), ("shards", step.shards)):
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
