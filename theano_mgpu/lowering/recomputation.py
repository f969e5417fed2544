"""What of a recomputed region reaches XLA: a value that cannot be had before others."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from theano_mgpu.lowering.dispatch import lowers
from theano_mgpu.recomputation import After
from theano_mgpu.regions import Mark

__all__: list[str] = []


@lowers(After)
def after(op: After, node: Any, **_: Any) -> Callable[..., Any]:
    """x, by a choice that is always the same but that XLA cannot make before the step runs.

    A shard's weight is never negative, which XLA does not know. ``lax.optimization_barrier`` is not enough: XLA's CPU
    compiler (JAX 0.10) drops it, takes the copy for the original, and keeps all activations.
    """

    def wait(x: Any, weight: Any, *others: Any) -> Any:
        never = jnp.asarray(weight) < 0
        late = [_entry(other, never) for other in others if jnp.size(other)]
        if isinstance(x, dict):  # a random generator's key
            return {name: _chosen(never, late, value) for name, value in x.items()}
        return _chosen(never, late, x)

    return wait


@lowers(Mark)
def mark(op: Mark, node: Any, **_: Any) -> Callable[..., tuple[Any, ...]]:
    """Inside a loop, where nothing is computed again."""
    return lambda *values: values


def _entry(value: Any, never: jax.Array) -> jax.Array:
    """One number of an array, at a place that XLA does not know: the first might be a constant."""
    start = [never.astype("int32")] * jnp.ndim(value)
    return lax.dynamic_slice(value, start, [1] * jnp.ndim(value)).reshape(())


def _chosen(never: jax.Array, late: list[jax.Array], x: Any) -> Any:
    for number in late:
        x = jnp.where(never, number.astype(x.dtype), x)
    return x
