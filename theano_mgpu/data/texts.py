"""Texts as one array of bytes, which a file of arrays can hold without pickling."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

__all__ = ["joined_texts", "split_texts"]


def joined_texts(texts: Iterable[bytes]) -> np.ndarray:
    """Texts without NUL, uint8, each with a NUL behind it."""
    return np.frombuffer(b"".join(text + b"\0" for text in texts), dtype=np.uint8)


def split_texts(joined: np.ndarray) -> list[bytes]:
    """What ``joined_texts`` was given."""
    return joined.tobytes().split(b"\0")[:-1]
