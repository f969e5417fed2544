"""``tm.contexts``: which devices there are, and in which order they take the shards of a batch."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import overload

import jax

from theano_mgpu.cluster import Cluster, cluster, place_of, require_one_place_each, start_jax
from theano_mgpu.host_memory import give_back_large_blocks

__all__ = ["Context", "Contexts", "Rank", "contexts"]

_SYNTAX = (
    'Expected "cpu:4" (four simulated devices), "cuda" (every GPU), "cuda:0,2" (two of them), "cuda0", '
    '"dev0->cuda0;dev1->cuda2" (names of your own), "cuda or cpu:4", or nothing (every GPU, else the CPU).'
)
# JAX's platform behind each of our names.
_PLATFORMS = {"cpu": "cpu", "cuda": "gpu"}


@dataclass(frozen=True)
class Context:
    """One device under its name.

    ``platform`` is "cpu" or "gpu"; ``device`` is JAX's; ``limit`` are the bytes that steps may use of its memory, all
    of it where none is given.
    """

    name: str
    device: jax.Device
    limit: int | None = None

    @property
    def platform(self) -> str:
        return str(self.device.platform)

    def memory(self) -> dict[str, int]:
        """Bytes in use, the peak, and the limit, as the device reports them (CPUs do not); a given limit counts."""
        statistics = self.device.memory_stats() or {}
        kept = {"bytes_in_use", "peak_bytes_in_use", "bytes_limit"}
        found = {key: value for key, value in statistics.items() if key in kept}
        if self.limit is not None:
            found["bytes_limit"] = min(self.limit, found.get("bytes_limit", self.limit))
        return found

    def __str__(self) -> str:
        return f"{self.name} ({self.device.device_kind}, {self.device})"


@dataclass(frozen=True)
class Rank:
    """One of the processes that mpirun started: its number, its host's name, and its contexts' names.

    ``positions`` are those of its contexts among the process's devices.
    """

    number: int
    host: str
    names: tuple[str, ...]
    positions: tuple[int, ...]

    def sliced(self, index: slice) -> Rank:
        """The same rank with some of its contexts."""
        return dataclasses.replace(self, names=self.names[index], positions=self.positions[index])

    def __str__(self) -> str:
        return f"rank {self.number} ({self.host})"


class Contexts(Sequence[Context]):
    """Devices of one platform, in order: shard ``i`` of a batch goes to context ``i``. A slice is contexts again.

    Under mpirun the members are this process's own devices, and ``ranks`` says which all ranks have: shards are
    numbered over those, rank after rank. Every rank slices its contexts in the same way.
    """

    def __init__(self, members: Sequence[Context], ranks: Sequence[Rank] = (), cluster: Cluster | None = None) -> None:
        if not members:
            raise ValueError("contexts: expected at least one device, got none.")
        for what, seen in (("name", [c.name for c in members]), ("device", [c.device for c in members])):
            for item in seen:
                if seen.count(item) > 1:
                    raise ValueError(f"contexts: the {what} {item} stands {seen.count(item)} times; give each once.")
        self._members = tuple(members)
        self.cluster = cluster
        names, positions = tuple(context.name for context in members), tuple(range(len(members)))
        self.ranks = tuple(ranks) or (Rank(0, "localhost", names, positions),)

    @overload
    def __getitem__(self, index: int) -> Context: ...
    @overload
    def __getitem__(self, index: slice) -> Contexts: ...
    @overload
    def __getitem__(self, index: str) -> Context: ...
    def __getitem__(self, index: int | slice | str) -> Context | Contexts:
        if isinstance(index, slice):
            return Contexts(self._members[index], [rank.sliced(index) for rank in self.ranks], self.cluster)
        if isinstance(index, str):
            for context in self._members:
                if context.name == index:
                    return context
            raise KeyError(f"contexts: no context is named {index!r}; there are {', '.join(self.names)}.")
        return self._members[index]

    def __len__(self) -> int:
        return len(self._members)

    def __iter__(self) -> Iterator[Context]:
        return iter(self._members)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Contexts) and (self._members, self.ranks) == (other._members, other.ranks)

    def __hash__(self) -> int:
        return hash((self._members, self.ranks))

    @property
    def rank(self) -> int:
        """This process's number among ``ranks``; 0 where it is alone."""
        return self.cluster.rank if self.cluster else 0

    @property
    def local(self) -> Contexts:
        """The same devices without the other ranks': a step over them is this rank's own."""
        return Contexts(self._members) if self.cluster else self

    @property
    def everywhere(self) -> Contexts:
        """The devices of all ranks as JAX sees them, for programs that run on all of them together."""
        return _everywhere(self) if self.cluster else self

    @property
    def counts(self) -> tuple[int, ...]:
        """How many devices each rank has."""
        return tuple(len(rank.names) for rank in self.ranks)

    @property
    def names(self) -> list[str]:
        return [context.name for context in self]

    @property
    def devices(self) -> list[jax.Device]:
        return [context.device for context in self]

    @property
    def platform(self) -> str:
        return self[0].platform

    def __repr__(self) -> str:
        among = f" of rank {self.rank} among {len(self.ranks)}" if self.cluster else ""
        return f"<contexts {', '.join(self.names)}{among}>"

    def __str__(self) -> str:
        rows = [("context", "platform", "device", "memory in use", "limit")]
        for context in self:
            memory = context.memory()
            in_use, limit = memory.get("bytes_in_use"), memory.get("bytes_limit")
            rows.append((context.name, context.platform, context.device.device_kind, _size(in_use), _size(limit)))
        widths = [max(len(row[column]) for row in rows) for column in range(5)]
        lines = ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
        table = "\n".join([lines[0], "  ".join("-" * width for width in widths), *lines[1:]])
        return f"{self._layout()}\n{table}" if self.cluster else table

    def _layout(self) -> str:
        """Of all ranks a line, this one's marked."""
        hosts = len({rank.host for rank in self.ranks})
        first = f"{sum(self.counts)} devices of {len(self.ranks)} ranks on {hosts} node{'s' if hosts > 1 else ''}"
        own = ["  <- this rank, whose devices are:" if rank.number == self.rank else "" for rank in self.ranks]
        return "\n".join(
            [first, *(f"  {rank}: {', '.join(rank.names)}{mark}" for rank, mark in zip(self.ranks, own, strict=True))]
        )


@functools.cache
def _everywhere(own: Contexts) -> Contexts:
    """In the order of the ranks. JAX numbers a process's devices in their order."""
    devices = jax.devices(own[0].platform)
    of_ranks = [[device for device in devices if device.process_index == rank.number] for rank in own.ranks]
    return Contexts(
        [
            Context(f"{name} of rank {rank.number}", of_rank[position], own[0].limit)
            for rank, of_rank in zip(own.ranks, of_ranks, strict=True)
            for name, position in zip(rank.names, rank.positions, strict=True)
        ]
    )


def _size(count: int | None) -> str:
    return "-" if count is None else f"{count / 2**30:.2f} GiB"


def contexts(spec: str | None = None, memory: int | str | None = None) -> Contexts:
    """The devices that a step runs on, in order.

    ``spec``: "cpu:4" makes four simulated devices of this machine's processor; "cuda" is every GPU, "cuda:0,2" two of
    them, "dev0->cuda0;dev1->cuda2" names them (Theano's syntax); "cuda or cpu:4" is the first of these that there is;
    None is every GPU, else the CPU.
    ``memory``: what a step may use on each of them, in bytes or as "2GB" or "512MiB"; simulated devices then run out of
    memory as GPUs do. By default what there is.

    Raises ValueError for a name that does not exist (the ones that do are listed), a malformed map or a malformed
    ``memory``, and RuntimeError for more simulated devices than were made when JAX started: their number is fixed then.
    """
    limit = None if memory is None else _bytes(memory)
    if "cpu" in str(spec):
        give_back_large_blocks()  # before there are other threads, which would have heaps of their own
    others = cluster()
    if others:
        start_jax(
            others,
            simulated=_simulated(spec),
            shares_gpus=spec is None or re.search(r"cuda(?![:\d])", spec) is not None,
        )
    found = list(_contexts(spec))
    if limit:
        found = [dataclasses.replace(context, limit=limit) for context in found]
    return _among_ranks(found, others) if others else Contexts(found)


def _among_ranks(own: Sequence[Context], others: Cluster) -> Contexts:
    """With what each rank has. Raises ValueError where two have the same GPU, or another kind of device."""
    there = jax.local_devices(backend=own[0].platform)
    positions = tuple(there.index(context.device) for context in own)
    rank = Rank(others.rank, others.host, tuple(context.name for context in own), positions)
    everyone = others.gathered((rank, own[0].platform, [place_of(context.device) for context in own]))
    require_one_place_each([(rank.host, platform, places) for rank, platform, places in everyone])
    return Contexts(own, [rank for rank, _, _ in everyone], others)


def _simulated(spec: str | None) -> int:
    """How many simulated devices a specification asks for."""
    counts = [int(match[1]) for match in re.finditer(r"cpu:(\d+)", spec or "")]
    return max(counts, default=1)


def _contexts(spec: str | None) -> Contexts:
    if spec is None:
        platform = "cuda" if _devices("cuda") else "cpu"
        return Contexts([Context(f"{platform}{i}", device) for i, device in enumerate(_devices(platform))])
    if not isinstance(spec, str) or not spec.strip():
        raise ValueError(f"contexts: 'spec' is {spec!r}. {_SYNTAX}")
    if " or " in spec:
        return _first_existing([alternative.strip() for alternative in spec.split(" or ")])
    if "->" in spec:
        return Contexts([_mapped(pair, spec) for pair in spec.split(";") if pair.strip()])
    names = _names(spec.strip())
    return Contexts([Context(name, _device(name, spec)) for name in names])


_UNITS = {"B": 1, **{f"{p}B": 1000 ** (i + 1) for i, p in enumerate("KMGT")}}
_UNITS |= {f"{p}iB": 1024 ** (i + 1) for i, p in enumerate("KMGT")}


def _bytes(memory: int | str) -> int:
    if isinstance(memory, str):
        match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([A-Za-z]+)\s*", memory)
        units = {name.lower(): count for name, count in _UNITS.items()}
        if match and match[2].lower() in units and float(match[1]) > 0:
            return int(float(match[1]) * units[match[2].lower()])
    elif isinstance(memory, int) and not isinstance(memory, bool) and memory > 0:
        return memory
    raise ValueError(
        f"contexts: 'memory' is {memory!r}, but should be a positive number of bytes on each device, or one with a "
        f'unit such as "2GB" or "512MiB" ({", ".join(_UNITS)}).'
    )


def _first_existing(alternatives: list[str]) -> Contexts:
    for alternative in alternatives:
        if match := re.fullmatch(r"cpu:(\d+)", alternative):
            _make_cpu_devices(int(match[1]))  # before a look for GPUs fixes their number
    for alternative in alternatives[:-1]:
        with contextlib.suppress(ValueError):
            return _contexts(alternative)
    return _contexts(alternatives[-1])


def _names(spec: str) -> list[str]:
    """Device names that a spec without a map stands for."""
    if match := re.fullmatch(r"cpu(?::(\d+))?", spec):
        count = int(match[1] or 1)
        if count < 1:
            raise ValueError(f"contexts: 'spec' is {spec!r}, but at least one device is needed. {_SYNTAX}")
        _make_cpu_devices(count)
        return [f"cpu{i}" for i in range(count)]
    if spec == "cuda":
        if not _devices("cuda"):
            raise ValueError(f"contexts: 'spec' is {spec!r}, but JAX sees no GPU. {_existing()}{_gpu_hint()}")
        return [f"cuda{i}" for i in range(len(_devices("cuda")))]
    if match := re.fullmatch(r"cuda:(\d+(?:\s*,\s*\d+)*)", spec):
        return [f"cuda{int(i)}" for i in match[1].split(",")]
    if re.fullmatch(r"(cpu|cuda)\d+(\s*,\s*(cpu|cuda)\d+)*", spec):
        return [name.strip() for name in spec.split(",")]
    raise ValueError(f"contexts: 'spec' is {spec!r}. {_SYNTAX} {_existing()}")


def _mapped(pair: str, spec: str) -> Context:
    match = re.fullmatch(r"\s*([A-Za-z_]\w*)\s*->\s*((?:cpu|cuda)\d+)\s*", pair)
    if match is None:
        raise ValueError(f'contexts: {pair.strip()!r} in {spec!r} is not of the form "name->cuda0". {_SYNTAX}')
    return Context(match[1], _device(match[2], spec))


def _device(name: str, spec: str) -> jax.Device:
    match = re.fullmatch(r"(cpu|cuda)(\d+)", name)
    assert match is not None
    devices = _devices(match[1])
    if int(match[2]) >= len(devices):
        hint = _gpu_hint() if match[1] == "cuda" else ' "cpu:N" makes N of them when it is asked for first.'
        raise ValueError(f"contexts: 'spec' is {spec!r}, but there is no device {name}. {_existing()}{hint}")
    return devices[int(match[2])]


def _devices(platform: str) -> list[jax.Device]:
    try:
        return list(jax.local_devices(backend=_PLATFORMS[platform]))
    except RuntimeError:
        return []


def _existing() -> str:
    names = [f"{platform}{i}" for platform in ("cuda", "cpu") for i in range(len(_devices(platform)))]
    return f"The devices here are {', '.join(names)}."


def _gpu_hint() -> str:
    return ' For GPUs install "theano-mgpu[cuda]".' if not _devices("cuda") else ""


def _make_cpu_devices(count: int) -> None:
    """See to it that there are ``count`` simulated devices; JAX fixes their number when its first device is made."""
    with_room = None
    try:
        if count > int(jax.config.jax_num_cpu_devices):
            jax.config.update("jax_num_cpu_devices", count)
    except RuntimeError as error:
        with_room = error
    there = len(_devices("cpu"))
    if there < count:
        raise RuntimeError(
            f'contexts: "cpu:{count}" asks for {count} simulated devices, but JAX has already made {there}, and their '
            f'number cannot grow in one process. Ask for the largest number first: tm.contexts("cpu:{count}") before '
            f"any other use of JAX; or take a slice of what there is."
        ) from with_room
