"""What a drawing of a cut says: what is where, how much of it, and which operations matter."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable
from pytensor.graph.basic import Variable
from pytensor.tensor.random.type import RandomType

from theano_mgpu.cut import Cut
from theano_mgpu.drawing.sizes import shapes_at_the_cut
from theano_mgpu.drawing.work import Work, work
from theano_mgpu.resident_data import ResidentData

__all__ = ["Group", "Running", "Summary", "listed", "plural", "size", "summarise", "typed"]


@dataclass(frozen=True)
class Running:
    """How a step runs its cut. A cut alone knows nothing of it: no contexts, no shards."""

    contexts: tuple[str, ...] = ()
    shards: int = 0
    update_on: str = "host"
    outputs: tuple[str, ...] = ()  # their labels, where they were given as a dict
    name: str = "step"

    @property
    def rounds(self) -> int:
        """The turns that the devices take, for a batch that divides evenly."""
        return -(-self.shards // len(self.contexts)) if self.contexts else 1

    @property
    def description(self) -> str:
        """ "8 shards in 2 rounds on cpu0, cpu1, cpu2, cpu3; update on the host"."""
        rounds = f" in {self.rounds} rounds" if self.rounds > 1 else ""
        where = "on the devices" if self.update_on == "device" else "on the host"
        return f"{plural(self.shards, 'shard')}{rounds} on {listed(self.contexts, 8)}; update {where}"


@dataclass(frozen=True)
class Group:
    """Variables that are in one place or travel together. ``unknown`` of them have no size known before a call."""

    names: tuple[str, ...] = ()
    numbers: int = 0
    bytes: int = 0
    unknown: int = 0

    def __len__(self) -> int:
        return len(self.names)

    @property
    def amount(self) -> str:
        """ "25,557,032 numbers, 102.2 MB"."""
        if self.unknown == len(self):
            return "size known at the first call" if self.unknown else ""
        more = f", and {self.unknown} of unknown size" if self.unknown else ""
        return f"{plural(self.numbers, 'number')}, {size(self.bytes)}{more}"


@dataclass(frozen=True)
class Summary:
    """A cut in words and numbers."""

    running: Running
    split: tuple[str, ...]
    whole: tuple[str, ...]
    whole_on_devices: bool
    whole_in_update: bool
    mirrored: Group  # shared variables on every device
    resident: Group  # data that stays on the devices, a part on each
    kept: Group  # shared variables that only the update reads or writes
    generators: tuple[str, ...]
    device: Work
    host: Work
    update_reads_shared: bool
    reductions: dict[str, Group]  # by their kind: average, total, ...
    gradients: tuple[str, ...]  # what the averages named as gradients are derivatives by
    statistics: tuple[str, ...]  # the other averages and totals
    updated: Group
    single: tuple[str, ...]  # labels of outputs with one value
    per_example: tuple[str, ...]

    @property
    def has_update(self) -> bool:
        return bool(self.gathered or self.host.nodes or self.updated or self.single)

    @property
    def kept_where(self) -> str:
        return "update only" if self.running.update_on == "device" else "host only"

    @property
    def gathered(self) -> Group:
        return _together(*self.reductions.values())

    @property
    def gathered_lines(self) -> tuple[str, ...]:
        """What crosses the cut: how many, how large, which."""
        counts = [plural(len(group), kind) for kind, group in self.reductions.items()]
        lines = [" and ".join(counts) + " from each shard", self.gathered.amount]
        if self.gradients:
            lines.append(f"{plural(len(self.gradients), 'gradient')}: by {listed(self.gradients)}")
        if self.statistics:
            lines.append(f"{'and ' if self.gradients else ''}of {listed(self.statistics)}")
        return tuple(lines)


_KINDS = ("average", "total", "maximum", "minimum")


def summarise(cut: Cut, running: Running | None = None) -> Summary:
    running = running or Running()
    tensors = [v for v in cut.device.shared if not isinstance(v.type, RandomType)]
    everything = (*cut.device.shared, *cut.host.shared, *cut.generators)
    mirrored = _in_order([v for v in tensors if not isinstance(v, ResidentData)], cut.updated)
    kept = [v for v in dict.fromkeys((*cut.updated, *_in_order(cut.host.shared, cut.updated))) if v not in tensors]
    labels = running.outputs or tuple(_output_label(cut, i) for i in range(len(cut.outputs)))
    names = _reduction_names(cut, labels)
    shapes = shapes_at_the_cut(cut)
    parts: dict[str, list[int]] = {}
    for i in sorted(names, key=lambda i: _KINDS.index(cut.reductions[i].kind)):
        parts.setdefault(cut.reductions[i].kind, []).append(i)
    gradients = {i: match[1] for i, name in names.items() if (match := re.fullmatch(r"d.+?/d(.+)", name))}
    return Summary(
        running=running,
        split=tuple(typed(v, batch=True) for v in cut.split),
        whole=tuple(typed(v) for v in cut.whole),
        whole_on_devices=any(v in cut.device.inputs for v in cut.whole),
        whole_in_update=any(v in cut.host.inputs for v in cut.whole),
        mirrored=_shared(mirrored),
        resident=_shared([v for v in tensors if isinstance(v, ResidentData)]),
        kept=_shared([v for v in kept if not isinstance(v.type, RandomType)]),
        generators=tuple(_name(v) for v in dict.fromkeys(everything) if isinstance(v.type, RandomType)),
        device=work(cut.device),
        host=work(cut.host),
        update_reads_shared=bool(cut.host.shared),
        reductions={kind: _travelling(cut, indices, names, shapes) for kind, indices in parts.items()},
        gradients=tuple(gradients.values()),
        statistics=tuple(name for i, name in names.items() if i not in gradients),
        updated=_shared(cut.updated),
        single=tuple(label for label, o in zip(labels, cut.outputs, strict=True) if not o.per_example),
        per_example=tuple(label for label, o in zip(labels, cut.outputs, strict=True) if o.per_example),
    )


def _in_order(variables: Iterable[SharedVariable], updated: Sequence[SharedVariable]) -> list[SharedVariable]:
    """In the order of the updates, which is the user's; the others after them, first used first."""
    place = {v: i for i, v in enumerate(updated)}
    first_used_first = list(variables)[::-1]
    return sorted(first_used_first, key=lambda v: place.get(v, len(place)))


def _shared(variables: Sequence[SharedVariable]) -> Group:
    values = [v.get_value(borrow=True, return_internal_type=True) for v in variables]
    return Group(
        tuple(_name(v) for v in variables),
        sum(int(np.size(value)) for value in values),
        sum(int(getattr(value, "nbytes", 0)) for value in values),
    )


def _travelling(
    cut: Cut, indices: Sequence[int], names: dict[int, str], shapes: Sequence[tuple[int, ...] | None]
) -> Group:
    numbers = total = unknown = 0
    for i in indices:
        shape = shapes[i]
        if shape is None:
            unknown += 1
            continue
        numbers += int(np.prod(shape, dtype=np.int64))
        total += int(np.prod(shape, dtype=np.int64)) * np.dtype(cut.reductions[i].value.type.dtype).itemsize
    return Group(tuple(names[i] for i in indices), numbers, total, unknown)


def _together(*groups: Group) -> Group:
    return Group(
        tuple(name for group in groups for name in group.names),
        sum(group.numbers for group in groups),
        sum(group.bytes for group in groups),
        sum(group.unknown for group in groups),
    )


def _reduction_names(cut: Cut, labels: Sequence[str]) -> dict[int, str]:
    """Position to name, in the order in which outputs and updates read them; a nameless one is named by its reader."""
    count = len(cut.host.outputs) - len(cut.updated)
    single = [label for label, output in zip(labels, cut.outputs, strict=True) if not output.per_example]
    readers = [*single, *(_name(v) for v in cut.updated)]
    positions = {reduction.placeholder: i for i, reduction in enumerate(cut.reductions)}
    names: dict[int, str] = {}
    seen: set[Variable] = set()
    # Updates first: they are the user's order of parameters.
    pairs = list(zip(cut.host.outputs, readers, strict=True))
    for output, reader in (*pairs[count:], *pairs[:count]):
        stack = [output]
        while stack:
            variable = stack.pop()
            if variable in seen:
                continue
            seen.add(variable)
            if variable in positions:
                names[positions[variable]] = reader if variable is output else variable.name or reader
            elif variable.owner is not None:
                stack.extend(variable.owner.inputs)
    return names


def _output_label(cut: Cut, position: int) -> str:
    output = cut.outputs[position]
    variable = (cut.per_example if output.per_example else cut.host.outputs)[output.index]
    return str(variable.name or f"output {position}")


def _name(variable: Variable) -> str:
    return str(variable.name or "unnamed")


def typed(variable: Variable, *, batch: bool = False) -> str:
    """ "images uint8 (n, 224, 224, 3)"; n is the batch's number of examples."""
    shape = ["?" if length is None else str(length) for length in variable.type.shape]
    if batch and variable.type.shape[0] is None:
        shape[0] = "n"
    return f"{_name(variable)} {variable.type.dtype}" + (f" ({', '.join(shape)})" if shape else "")


def listed(names: Sequence[str], most: int = 4) -> str:
    """The first names and the last one."""
    if len(names) <= most:
        return ", ".join(names)
    return ", ".join([*names[: most - 2], "..., " + names[-1]])


def plural(count: int, noun: str) -> str:
    return f"{count:,} {noun}" + ("" if count == 1 else "s")


def size(count: int) -> str:
    """Bytes for people, in decimal units."""
    for unit, scale in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"
