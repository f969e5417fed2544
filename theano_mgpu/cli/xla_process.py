"""How XLA is set up in the process of a command: before its first device is made."""

from __future__ import annotations

import hashlib
import os
import platform
from pathlib import Path

import jax

from theano_mgpu.user_cache import user_cache

__all__ = ["compute_alike_on_any_number_of_devices", "keep_compiled_programs"]

_THREADS = 8  # as many as the simulated devices among which a run should end with the same bits

_MOST_BYTES = 2**30  # the programs that were used longest ago make room


def compute_alike_on_any_number_of_devices() -> None:
    """Have XLA's pool of threads not depend on the number of simulated devices, so that bits do not either.

    XLA cuts convolutions and sums of a CPU by the threads of its pool, of which it makes as many as there are cores, or
    simulated devices if those are more: on two cores a run that began on four devices went on to other bits on two.
    Where there are fewer cores than eight this costs time: 16 % of ResNet-50's step on two. NPROC is XLA's name for the
    number, and is left alone where it is set.
    """
    os.environ.setdefault("NPROC", str(max(_THREADS, os.cpu_count() or 1)))


def keep_compiled_programs() -> None:
    """A run that goes on, or begins again, compiles nothing anew: programs are kept in the user's cache.

    For this process, unless JAX_COMPILATION_CACHE_DIR or a setting of JAX names a folder of its own already.

    Programs for a CPU run on that kind alone, and a home folder may be shared, so each kind has a folder.
    """
    if jax.config.jax_compilation_cache_dir is None:
        jax.config.update("jax_compilation_cache_dir", str(user_cache() / f"compiled-{_processor()}"))
        jax.config.update("jax_compilation_cache_max_size", _MOST_BYTES)


def _processor() -> str:
    """A digest of what its programs may use."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
        features = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    except OSError:
        features = ""
    return hashlib.blake2b(
        f"{platform.machine()} {platform.processor()} {features}".encode(), digest_size=6
    ).hexdigest()
