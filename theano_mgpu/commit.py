"""New values become the shared variables' own: the last line of a step. Nothing before it is visible."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import jax
import numpy as np
from pytensor.compile.sharedvalue import SharedVariable

from theano_mgpu.finite import are_finite, is_finite
from theano_mgpu.lending import Loan, are_lendable, lend, peek
from theano_mgpu.mirror import Mirrors, as_numpy, fetched, write
from theano_mgpu.vectors import Slot, parts_of, variables_of

__all__ = ["NewValue", "commit", "new_values", "non_finite"]


@dataclass(frozen=True)
class NewValue:
    """What a slot's variables become: an array on the devices, and on the host where it is not lent."""

    slot: Slot
    array: jax.Array
    host: np.ndarray | None


def new_values(
    slots: Sequence[Slot], arrays: Sequence[jax.Array], shared: Sequence[SharedVariable], *, lending: bool
) -> list[NewValue]:
    """The slots' new values; ``shared`` are variables whose memory is still needed."""
    taken = {value.ctypes.data for v in shared if isinstance(value := peek(v), np.ndarray)}
    return [
        NewValue(slot, array, None if lending and are_lendable(variables_of(slot)) else as_numpy(array, taken))
        for slot, array in zip(slots, arrays, strict=True)
    ]


def non_finite(values: Sequence[NewValue], flags: Sequence[jax.Array]) -> list[SharedVariable]:
    """The variables that would become NaN or infinite. ``flags`` say it of whole slots where the devices looked."""
    ok = fetched(flags) if flags else are_finite([v.host for v in values if v.host is not None])
    bad = [value for value, is_ok in zip(values, ok, strict=True) if not is_ok]
    return [
        variable
        for value in bad
        for variable, part in zip(variables_of(value.slot), parts_of(value.slot, _on_host(value)), strict=True)
        if not is_finite(part)
    ]


def commit(values: Sequence[NewValue], mirrors: Mirrors) -> None:
    for value in values:
        if value.host is None:
            lend(Loan(value.slot, value.array, lambda array: as_numpy(array, set())))
            continue
        parts = parts_of(value.slot, value.host)
        for variable, part in zip(variables_of(value.slot), parts, strict=True):
            write(variable, part)
        mirrors.keep(value.slot, parts, value.host, value.array)


def _on_host(value: NewValue) -> np.ndarray:
    return fetched([value.array])[0] if value.host is None else value.host
