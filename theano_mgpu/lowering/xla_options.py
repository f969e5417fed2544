"""XLA's options for a step's programs, where its defaults are slow, or give other bits from run to run."""

from __future__ import annotations

import functools

import jax
import numpy as np

__all__ = ["device_program_options", "update_program_options"]

Options = dict[str, str | bool]

# Among a GPU's kernels only those that give the same bits at every run; the fastest of them is still looked for.
_REPEATABLE: Options = {"xla_gpu_exclude_nondeterministic_ops": True}

_OF_DEVICE_PROGRAMS: dict[str, Options] = {
    # On a CPU, YNNPACK by default computes convolutions as well; Eigen does them faster, on all cores: a step of
    # ResNet-50 takes 0.90 of the time, eight shards of ResNet-20 as long on one device as on eight.
    "cpu": {
        "xla_cpu_experimental_ynn_fusion_type": (
            "LIBRARY_FUSION_TYPE_DOT,LIBRARY_FUSION_TYPE_INDIVIDUAL_DOT,LIBRARY_FUSION_TYPE_REDUCE"
        )
    },
    "gpu": _REPEATABLE,
}

# For several devices XLA unites common subexpressions before it simplifies, for one afterwards. What has one user is
# simplified in other ways than what has two (a * b / c in other orders), so that LAMB's last bits differed. PyTensor
# has united them already.
_IN_ONE_ORDER: Options = {"xla_disable_hlo_passes": "cse"}

_OF_UPDATE_PROGRAMS: dict[str, Options] = {"cpu": _IN_ONE_ORDER, "gpu": _IN_ONE_ORDER | _REPEATABLE}


def device_program_options(platform: str) -> Options | None:
    """What ``jax.jit`` takes as ``compiler_options``. For one program: JAX's own flags stay as they are."""
    return _known(_OF_DEVICE_PROGRAMS, platform)


def update_program_options(platform: str) -> Options | None:
    """The same for the update rule, where it runs on the devices."""
    return _known(_OF_UPDATE_PROGRAMS, platform)


def _known(of_platforms: dict[str, Options], platform: str) -> Options | None:
    options = of_platforms.get(platform, {})
    return options if options and _are_known(tuple(options.items())) else None


@functools.cache
def _are_known(options: tuple[tuple[str, str | bool], ...]) -> bool:
    try:
        jax.jit(lambda x: x, compiler_options=dict(options)).lower(np.float32(0)).compile()
    except jax.errors.JaxRuntimeError:  # experimental options come and go
        return False
    return True
