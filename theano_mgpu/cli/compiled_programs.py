"""What XLA compiled is kept in the user's cache: a run that goes on, or begins again, compiles nothing anew."""

from __future__ import annotations

import hashlib
import platform
from pathlib import Path

import jax

from theano_mgpu.user_cache import user_cache

__all__ = ["keep_compiled_programs"]

_MOST_BYTES = 2**30  # the programs that were used longest ago make room


def keep_compiled_programs() -> None:
    """For this process, unless JAX_COMPILATION_CACHE_DIR or a setting of JAX names a folder of its own already.

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
