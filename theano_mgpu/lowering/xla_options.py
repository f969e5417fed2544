"""XLA's options for a device program, where its defaults are slow, or give other bits from run to run."""

from __future__ import annotations

import functools

import jax
import numpy as np

__all__ = ["xla_options"]

_OPTIONS: dict[str, dict[str, str | bool]] = {
    # On a CPU, YNNPACK by default computes convolutions as well; Eigen does them faster, on all cores: a step of
    # ResNet-50 takes 0.90 of the time, eight shards of ResNet-20 as long on one device as on eight.
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": (
            "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
        )
    },
    # Among a GPU's kernels only those that give the same bits at every run; the fastest of them is still looked for.
    "gpu": {"xla_gpu_exclude_nondeterministic_ops": True},
}


@functools.cache
def xla_options(platform: str) -> dict[str, str | bool] | None:
    """What ``jax.jit`` takes as ``compiler_options``. For one program: JAX's own flags stay as they are."""
    options = _OPTIONS.get(platform)
    return options if options and _are_known(options) else None


def _are_known(options: dict[str, str | bool]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=options).lower(np.float32(0)).compile()
    except jax.errors.JaxRuntimeError:  # experimental options come and go
        return False
    return True
