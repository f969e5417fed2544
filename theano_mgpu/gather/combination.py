"""How two shards' values become one, by the kind of the reduction, and what stands where there is no shard."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

__all__ = ["Combination", "combination", "combined"]


@dataclass(frozen=True)
class Combination:
    """``combine(value, nothing)`` is the value, to the bit; -0.0 is none of the values that are summed."""

    combine: Callable[[Any, Any], Any]
    nothing: Callable[[Any], Any]  # for a dtype

    def nothing_like(self, value: jax.Array) -> jax.Array:
        return jnp.full_like(value, self.nothing(value.dtype))


def combination(kind: str) -> Combination:
    """Averages are sums by the time they are combined: a shard's part has its weight."""
    return _COMBINATIONS[kind]


@functools.partial(jax.jit, static_argnums=0, donate_argnums=1)
def combined(kinds: Sequence[str], left: Sequence[jax.Array], right: Sequence[jax.Array]) -> list[jax.Array]:
    """Two shards' arrays, or two partial results, combined one by one, in the memory of the left ones."""
    return [combination(kind).combine(a, b) for kind, a, b in zip(kinds, left, right, strict=True)]


def _lowest(dtype: Any) -> Any:
    return -jnp.inf if jnp.issubdtype(dtype, jnp.floating) else _limits(dtype)[0]


def _highest(dtype: Any) -> Any:
    return jnp.inf if jnp.issubdtype(dtype, jnp.floating) else _limits(dtype)[1]


def _limits(dtype: Any) -> tuple[Any, Any]:
    return (False, True) if jnp.issubdtype(dtype, jnp.bool_) else (jnp.iinfo(dtype).min, jnp.iinfo(dtype).max)


_SUM = Combination(jnp.add, lambda dtype: 0)
_COMBINATIONS = {
    "average": _SUM,
    "total": _SUM,
    "maximum": Combination(jnp.maximum, _lowest),
    "minimum": Combination(jnp.minimum, _highest),
}
