"""What a benchmark's line says about itself: the machine, the versions, and how it was called."""

from __future__ import annotations

import importlib.metadata
import json
import os
import platform
import resource
import subprocess
from typing import Any

__all__ = ["machine", "peak_memory_gb", "print_line"]


def machine() -> dict[str, Any]:
    """Processor, usable cores, GPUs, and the versions of what does the work."""
    found = {"cpu": _processor(), "cores": len(os.sched_getaffinity(0)), "python": platform.python_version()}
    if gpus := _gpus():
        found["gpus"] = gpus
    for package in ("numpy", "jax", "pytensor", "torch", "theano-mgpu"):
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def peak_memory_gb() -> float:
    """The most memory that this process has had so far (resident set, GB)."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3)


def print_line(**figures: Any) -> None:
    """One JSON line: the figures, then the machine."""
    print(json.dumps({**figures, "machine": machine()}), flush=True)


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _gpus() -> list[str]:
    try:
        query = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
        return subprocess.run(query, capture_output=True, text=True, check=True, timeout=30).stdout.split("\n")[:-1]
    except (OSError, subprocess.SubprocessError):
        return []
