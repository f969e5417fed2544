"""New values become the shared variables' own: the last line of a step. Nothing before it is visible."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np
from pytensor.compile.sharedvalue import SharedVariable

from theano_mgpu.finite import are_finite, is_finite
from theano_mgpu.lending import Loan, are_lendable, lend, peek
from theano_mgpu.mirror import Mirrors, as_numpy, fetched, write
from theano_mgpu.vectors import Slot, parts_of, variables_of

__all__ = ["NewValue", "addresses_of", "commit", "new_values", "non_finite"]


@dataclass(frozen=True)
class NewValue:
    """What a slot's variables become: an array on the devices, and on the host where it is not lent.

    ``to_host`` makes the host's value of what is lent.
    """

    slot: Slot
    array: jax.Array
    host: np.ndarray | None
    to_host: Callable[[Any], np.ndarray] = lambda array: as_numpy(array, set())


def new_values(
    slots: Sequence[Slot], arrays: Sequence[jax.Array], shared: Sequence[SharedVariable], *, lending: bool
) -> list[NewValue]:
    """The slots' new values; ``shared`` are variables whose memory is still needed."""
    taken = addresses_of(shared)
    return [
        NewValue(slot, array, None if lending and are_lendable(variables_of(slot)) else as_numpy(array, taken))
        for slot, array in zip(slots, arrays, strict=True)
    ]


def addresses_of(variables: Sequence[SharedVariable]) -> set[int]:
    """Where the variables' values are in memory."""
    return {value.ctypes.data for v in variables if isinstance(value := peek(v), np.ndarray)}


def non_finite(values: Sequence[NewValue], flags: Sequence[jax.Array]) -> list[int]:
    """What would become NaN or infinite, by the numbers of the slots' variables, of all in a row.

    ``flags`` say it of whole slots where the devices looked.
    """
    ok = fetched(flags) if flags else are_finite([v.host for v in values if v.host is not None])
    found, number = [], 0
    for value, is_ok in zip(values, ok, strict=True):
        if not is_ok:
            parts = parts_of(value.slot, _on_host(value))
            found += [number + i for i, part in enumerate(parts) if not is_finite(part)]
        number += len(variables_of(value.slot))
    return found


def commit(values: Sequence[NewValue], mirrors: Mirrors) -> None:
    for value in values:
        if value.host is None:
            lend(Loan(value.slot, value.array, value.to_host))
            continue
        parts = parts_of(value.slot, value.host)
        for variable, part in zip(variables_of(value.slot), parts, strict=True):
            write(variable, part)
        mirrors.keep(value.slot, parts, value.host, value.array)


def _on_host(value: NewValue) -> np.ndarray:
    return fetched([value.array])[0] if value.host is None else value.host
