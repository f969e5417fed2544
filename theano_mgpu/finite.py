"""Whether arrays are finite throughout, in one pass at the speed of memory."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np

__all__ = ["are_finite", "is_finite"]

_FEW = 2**10  # entries, for which a dot product is not worth its preparation
_MANY_BYTES = 2**22  # whose reading takes longer than to share it out


def are_finite(arrays: Sequence[np.ndarray]) -> list[bool]:
    """``is_finite`` of each, on all cores where there is much to read."""
    if sum(array.nbytes for array in arrays) < _MANY_BYTES:
        return [is_finite(array) for array in arrays]
    return list(_threads().map(is_finite, arrays))


def is_finite(array: np.ndarray) -> bool:
    """True where no entry is NaN or infinite; integers always are finite.

    As reductions in the update program the same check took XLA 4 s of processor time to compile for ResNet-50's 428
    variables. A dot product of the array with itself is not finite if an entry is not, or if it overflows: then look
    twice.
    """
    if array.dtype.kind not in "fc":
        return True
    flat = array.reshape(-1)
    if flat.size < _FEW:
        return bool(np.isfinite(flat).all())
    with np.errstate(all="ignore"):  # what overflows is no fault of the caller's
        if array.dtype in (np.float32, np.float64) and np.isfinite(np.dot(flat, flat)):
            return True
    return bool(np.isfinite(flat).all())


@functools.cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="theano_mgpu finite")
