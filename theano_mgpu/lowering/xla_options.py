"""XLA's options for a device program, where its defaults are slow."""

from __future__ import annotations

import functools

import jax
import numpy as np

__all__ = ["xla_options"]

# On a CPU, YNNPACK by default computes convolutions as well; Eigen does them faster, on all cores: a step of ResNet-50
# takes 0.90 of the time, eight shards of ResNet-20 as long on one device as on eight.
_ALL_BUT_CONVOLUTIONS = {
    "xla_cpu_experimental_ynn_fusion_type": (
        "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
    )
}


@functools.cache
def xla_options(platform: str) -> dict[str, str] | None:
    """What ``jax.jit`` takes as ``compiler_options``. For one program: JAX's own flags stay as they are."""
    return _ALL_BUT_CONVOLUTIONS if platform == "cpu" and _are_known(_ALL_BUT_CONVOLUTIONS) else None


def _are_known(options: dict[str, str]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(np.float32(0)).compile()
    except jax.errors.JaxRuntimeError:  # experimental options come and go
        return False
    return True
