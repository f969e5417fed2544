"""Bandwidths and times as people write them: "400Gbit", "1.5GB/s", "5us"."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence

__all__ = ["bandwidth", "in_bits", "in_bytes", "in_seconds", "seconds"]

_PREFIXES = {"": 1.0, "k": 1e3, "m": 1e6, "g": 1e9, "t": 1e12}
_TIMES = {"ns": 1e-9, "us": 1e-6, "µs": 1e-6, "ms": 1e-3, "s": 1.0}
_LARGE = ("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)
_SMALL = ("", 1.0), ("m", 1e-3), ("u", 1e-6), ("n", 1e-9)
_NUMBER = r"\s*(?P<number>[0-9]+(?:\.[0-9]*)?(?:e[+-]?[0-9]+)?)\s*"
_RATE = re.compile(_NUMBER + r"(?P<prefix>[kmgt]?)(?P<unit>bit|bits|bps|b)(?:/s)?\s*", re.IGNORECASE)
_TIME = re.compile(_NUMBER + r"(?P<unit>ns|us|µs|ms|s)\s*", re.IGNORECASE)


def bandwidth(name: str, text: str) -> float:
    """Bytes/s of "400Gbit", "10Gbit/s", "1.5GB/s"; prefixes are powers of 1000, "B" is bytes and "bit" or "b" bits.

    Raises ValueError, naming the option ``name``, for anything else and for 0.
    """
    found = _RATE.fullmatch(text)
    if found:
        unit = found["unit"]
        in_bytes = float(found["number"]) * _PREFIXES[found["prefix"].lower()] / (1 if unit == "B" else 8)
        if 0 < in_bytes < math.inf:
            return in_bytes
    raise ValueError(
        f"'{name}' should be a bandwidth greater than 0, in bits or bytes a second, got '{text}'. Write it as 400Gbit "
        "or 50GB/s."
    )


def seconds(name: str, text: str) -> float:
    """Seconds of "5us", "0.2ms", "1s". Raises ValueError, naming the option ``name``, for anything else."""
    if (found := _TIME.fullmatch(text)) and (value := float(found["number"]) * _TIMES[found["unit"].lower()]) < 1e9:
        return value
    raise ValueError(f"'{name}' should be a time of 0 or more with its unit, got '{text}'. Write it as 5us or 0.2ms.")


def in_bits(rate: float) -> str:
    """Bytes/s as "400 Gbit/s"."""
    return _with_prefix(8 * rate, _LARGE, "bit/s")


def in_bytes(rate: float) -> str:
    """Bytes/s as "50 GB/s"."""
    return _with_prefix(rate, _LARGE, "B/s")


def in_seconds(time: float) -> str:
    """Seconds as "5 us", "0.12 s"."""
    return _with_prefix(time, _SMALL, "s")


def _with_prefix(value: float, prefixes: Sequence[tuple[str, float]], unit: str) -> str:
    prefix, factor = next(((p, f) for p, f in prefixes if value >= 0.9995 * f), ("", 1.0))
    return f"{value / factor:.3g} {prefix}{unit}"
