"""``theano-mgpu devices``."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from theano_mgpu.cli.parsing import answer, parsed

__all__ = ["run"]


@dataclass(frozen=True)
class _Options:
    """The devices that there are."""

    contexts: str | None = None
    """Which: "cuda:0,1", "cpu:4"; every GPU, else the CPU, if not given."""
    json: bool = False
    """Print JSON."""


def run(words: Sequence[str]) -> None:
    options = parsed(_Options, words, "devices")

    from theano_mgpu.devices import contexts

    found = contexts(options.contexts)
    devices: list[dict[str, Any]] = [
        {
            "name": context.name,
            "platform": context.platform,
            "kind": str(context.device.device_kind),
            "memory": context.memory(),
        }
        for context in found
    ]
    lines = [f"{d['name']}  {d['platform']}  {d['kind']}{_memory(d['memory'])}" for d in devices]
    values: dict[str, Any] = {"devices": devices}
    if found.cluster is not None:
        values["ranks"] = [{"host": rank.host, "devices": list(rank.names)} for rank in found.ranks]
        lines = [f"{rank}: {', '.join(rank.names)}" for rank in found.ranks] + ["", f"of rank {found.rank}:", *lines]
    answer(values, "\n".join(lines), as_json=options.json)


def _memory(memory: dict[str, int]) -> str:
    if "bytes_limit" not in memory:
        return ""
    return f"  {memory.get('bytes_in_use', 0) / 2**30:.1f} of {memory['bytes_limit'] / 2**30:.1f} GiB in use"
