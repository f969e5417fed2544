"""What loading a file did, and which names it was told to leave alone."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase

__all__ = ["LoadReport", "matching"]


@dataclass(frozen=True)
class LoadReport:
    """What became of every name in the file and in the store; ``print(report)`` says it in a few lines.

    Attributes:
        loaded: parameters that have the file's values now; in the store's own layout generators too.
        skipped: names in the file that ``skip`` covers: not taken.
        missing: names in the store that the file has not, and that ``skip`` covers: as they were.
        ignored: what a file of torch's holds besides: counts of batches, and a checkpoint's other entries.
    """

    loaded: tuple[str, ...]
    skipped: tuple[str, ...] = ()
    missing: tuple[str, ...] = ()
    ignored: tuple[str, ...] = ()

    def __str__(self) -> str:
        rows = {"loaded": self.loaded, "skipped": self.skipped, "missing": self.missing, "ignored": self.ignored}
        return "\n".join(f"{word:8}{_listed(names)}" for word, names in rows.items() if names or word == "loaded")


def matching(where: str, skip: Sequence[str], names: Iterable[str]) -> set[str]:
    """The names that one of the patterns in ``skip`` matches, as file names are matched in a shell.

    Raises ValueError for a pattern that matches none: it would have been mistyped.
    """
    if isinstance(skip, str) or not all(isinstance(pattern, str) for pattern in skip):
        raise ValueError(f"{where}: 'skip' should be patterns, as in skip=('fc.*',), not {skip!r}.")
    names = list(dict.fromkeys(names))
    matched: set[str] = set()
    for pattern in skip:
        found = [name for name in names if fnmatchcase(name, pattern)]
        if not found:
            nearest = difflib.get_close_matches(pattern, names, n=3, cutoff=0.4)
            hint = f" (nearest: {', '.join(map(repr, nearest))})" if nearest else ""
            raise ValueError(
                f"{where}: nothing was changed, because '{pattern}' in skip= matches no name in the store or the "
                f"file{hint}."
            )
        matched.update(found)
    return matched


def _listed(names: Sequence[str]) -> str:
    shown = names if len(names) <= 6 else (*names[:3], "...", *names[-2:])
    return f"{len(names):4}  {', '.join(shown)}".rstrip()
