"""The door to PyTensor's JAX dispatch, and the checks that a lowered graph makes on its data."""

from __future__ import annotations

import contextlib
import contextvars
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

_x64 = jax.config.jax_enable_x64
from pytensor.link.jax.dispatch.basic import jax_funcify  # noqa: E402
from pytensor.link.jax.dispatch.random import jax_sample_fn  # noqa: E402

# PyTensor's dispatch sets this flag for the whole process from floatX; it is the user's to set.
jax.config.update("jax_enable_x64", _x64)

__all__ = ["Check", "collect_checks", "jax_funcify", "jax_sample_fn", "lowers", "require"]

#: ``@lowers(MyOp)`` registers how an op runs on a device: ``def my_op(op, node, **_): return function_of_arrays``.
lowers = jax_funcify.register


@dataclass(frozen=True)
class Check:
    """A condition on the data, computed on the device and looked at on the host before anything is committed."""

    ok: jax.Array
    error: type[Exception]
    message: str
    details: dict[str, jax.Array]


_checks: contextvars.ContextVar[list[Check] | None] = contextvars.ContextVar("checks", default=None)


@contextlib.contextmanager
def collect_checks() -> Iterator[list[Check]]:
    """The checks that ``require`` is asked for inside the block."""
    checks: list[Check] = []
    token = _checks.set(checks)
    try:
        yield checks
    finally:
        _checks.reset(token)


@contextlib.contextmanager
def no_checks() -> Iterator[None]:
    """Inside a loop's body a condition has no way out."""
    token = _checks.set(None)
    try:
        yield
    finally:
        _checks.reset(token)


def require(ok: Any, error: type[Exception], message: str, **details: Any) -> bool:
    """Ask, while a graph is traced, that ``ok`` (a boolean scalar) holds at every call.

    Where it does not, the step raises ``error(message.format(**details))`` and changes nothing; ``details`` are
    scalars computed on the device. Returns False where nobody listens (inside a loop).
    """
    checks = _checks.get()
    if checks is None:
        return False
    scalars = {name: jnp.asarray(value) for name, value in details.items()}
    checks.append(Check(jnp.asarray(ok), error, message, scalars))
    return True
