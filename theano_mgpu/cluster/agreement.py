"""Whether all ranks are about to run the same: refused by name at the start, not by a hang later."""

from __future__ import annotations

from collections.abc import Mapping
from hashlib import blake2b
from itertools import zip_longest
from typing import Any

from theano_mgpu.cluster.communication import Cluster
from theano_mgpu.errors import RanksDifferError

__all__ = ["agree"]

# Characters of one value in the message.
_SHOWN = 200


def agree(cluster: Cluster, what: str, facts: Mapping[str, Any]) -> None:
    """Return if all ranks have the same ``facts`` (name to value: text, or anything whose ``repr`` is the same).

    For all ranks to call, at the same point; ``what`` is who asks, as "tm.function()". Raises RanksDifferError on all
    of them otherwise: which fact, which rank on which host, what it has and what the others have. Those others are the
    most, or where there are as many on both sides, those of rank 0.
    """
    texts = {"call": what} | {name: value if isinstance(value, str) else repr(value) for name, value in facts.items()}
    digest = blake2b(repr(sorted(texts.items())).encode(errors="backslashreplace"), digest_size=16).digest()
    if len(set(cluster.gathered(digest))) == 1:
        return
    everyone = cluster.gathered((cluster.host, texts))
    hosts = [host for host, _ in everyone]
    names = dict.fromkeys(name for _, has in everyone for name in has)
    differences = [line for name in names for line in _differences(name, [has.get(name) for _, has in everyone], hosts)]
    raise RanksDifferError(
        f"{what}: the ranks do not have the same:\n  "
        + "\n  ".join(differences)
        + "\nEvery rank runs the same script with the same arguments, on the same versions of Python and of the "
        "libraries: install the same environment on all hosts, and let no rank build another graph than the others."
    )


def _differences(name: str, texts: list[str | None], hosts: list[str]) -> list[str]:
    """A line for each group of ranks that has something else than the most."""
    groups: dict[str | None, list[int]] = {}
    for rank, text in enumerate(texts):
        groups.setdefault(text, []).append(rank)
    usual = max(groups, key=lambda text: len(groups[text]))  # the first of equally many: rank 0's
    lines = []
    for text, ranks in groups.items():
        if text != usual:
            where, this, that = _first_difference(text, usual)
            lines.append(f"{name}{where}: {this} on {_ranks(ranks, hosts)}, {that} on {_ranks(groups[usual], hosts)}")
    return lines


def _first_difference(text: str | None, usual: str | None) -> tuple[str, str, str]:
    """In which line they differ, where there are several, and what both have there."""
    if text is None or usual is None or "\n" not in text + usual:
        return "", *_shown(text, usual)
    pairs = enumerate(zip_longest(text.split("\n"), usual.split("\n")), start=1)
    number, lines = next((number, lines) for number, lines in pairs if lines[0] != lines[1])
    return f", line {number}", *_shown(*lines)


def _shown(text: str | None, usual: str | None) -> tuple[str, str]:
    """Both, of long ones what is around the first difference."""
    pairs = enumerate(zip_longest(text or "", usual or ""))
    start = max(0, next(place for place, (mine, its) in pairs if mine != its) - _SHOWN // 2)
    return _cut(text, start), _cut(usual, start)


def _cut(text: str | None, start: int) -> str:
    if text is None:
        return "nothing"
    if len(text) <= _SHOWN:
        return repr(text)
    part = text[start : start + _SHOWN]
    return f"{'...' if start else ''}{part!r}{'...' if start + _SHOWN < len(text) else ''}"


def _ranks(ranks: list[int], hosts: list[str]) -> str:
    named = ", ".join(f"{rank} ({hosts[rank]})" for rank in ranks[:4])
    return f"rank{'s' if len(ranks) > 1 else ''} {named}" + (f" and {len(ranks) - 4} more" if len(ranks) > 4 else "")
