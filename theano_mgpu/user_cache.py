"""Where what can be made again is kept for the next time."""

from __future__ import annotations

import os
from pathlib import Path

__all__ = ["user_cache"]


def user_cache() -> Path:
    """``theano_mgpu`` below ``XDG_CACHE_HOME``, or else below ``~/.cache``; it may not be there yet."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path("~/.cache").expanduser()) / "theano_mgpu"
