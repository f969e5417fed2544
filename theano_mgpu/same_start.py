"""Before the first step: all ranks are about to run the same, and hold what rank 0 holds."""

from __future__ import annotations

import platform
from importlib.metadata import version
from typing import Any

from theano_mgpu.cluster import agree
from theano_mgpu.first_values import take_over_from_first
from theano_mgpu.step import Step

__all__ = ["start_alike"]

_PACKAGES = ("theano-mgpu", "pytensor", "jax", "jaxlib", "numpy")


def start_alike(step: Step) -> None:
    """For all ranks, or nothing where there is one. Raises RanksDifferError where one is about to run another step."""
    cluster = step.contexts.cluster
    if cluster is not None:
        agree(cluster, f"tm.function(), which makes {step.name!r}", _facts(step))
        take_over_from_first(cluster, step.get_shared())


def _facts(step: Step) -> dict[str, Any]:
    """What has to be the same on all ranks: of values the shapes, for rank 0's are taken over."""
    shared = step.get_shared()
    shapes = [getattr(variable.get_value(borrow=True), "shape", "") for variable in shared]
    return {
        "Python": platform.python_version(),
        **{package: version(package) for package in _PACKAGES},
        "contexts": [(str(rank), rank.names) for rank in step.contexts.ranks],
        **step.options,
        "shared variables": "\n".join(f"{v.name} {v.type} {shape}" for v, shape in zip(shared, shapes, strict=True)),
        "graph": step.dprint(file="str", print_type=True),
    }
