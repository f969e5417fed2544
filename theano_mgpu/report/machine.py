"""What a run ran on."""

from __future__ import annotations

import importlib.metadata
import os
import platform
import sys
from pathlib import Path
from typing import Any

from theano_mgpu.devices import Contexts

__all__ = ["describe_machine"]

_PACKAGES = ("jax", "jaxlib", "pytensor", "numpy")


def describe_machine(contexts: Contexts | None = None) -> dict[str, Any]:
    """The processor, its cores, the memory, the devices, and the versions of what does the work: values JSON can hold.

    contexts: whose devices are named. By default none are: to ask JAX for them would fix their number.
    """
    described: dict[str, Any] = {
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.1f} GiB",
        "system": f"{platform.system()} {platform.release()}, {platform.machine()}",
    }
    if contexts is not None:
        described["devices"] = [f"{context.name} ({context.device.device_kind})" for context in contexts]
        if contexts.cluster is not None:
            described["ranks"] = [f"{rank}: {', '.join(rank.names)}" for rank in contexts.ranks]
    described["python"] = platform.python_version()
    described |= {package: importlib.metadata.version(package) for package in _PACKAGES}
    # The package itself may be used from its source, which is no installation.
    described["theano_mgpu"] = sys.modules["theano_mgpu"].__version__
    return described


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()
