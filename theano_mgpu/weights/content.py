"""What a file of weights holds, before anything of it is compared with a store."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

__all__ = ["Content", "unreadable"]


@dataclass(frozen=True)
class Content:
    """The entries of one file, by name.

    ``arrays`` may be read-only views of what was read, in the file's own order of axes. ``foreign`` are entries that
    are no arrays of numbers, each with words that follow its name. ``ignored`` are names that nobody needs.
    ``problems`` are what is wrong with the file as a whole: it was read to its end, but should not be taken.
    """

    arrays: Mapping[str, np.ndarray]
    foreign: Mapping[str, str] = field(default_factory=dict)
    ignored: tuple[str, ...] = ()
    generators: Mapping[str, np.random.Generator] = field(default_factory=dict)
    problems: tuple[str, ...] = ()


def unreadable(path: Path, why: str) -> ValueError:
    """The error for a file that cannot be read at all."""
    return ValueError(f"load('{path}'): {why}. Nothing was changed.")
