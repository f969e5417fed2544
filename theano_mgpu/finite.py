"""Whether an array is finite throughout, in one pass at the speed of memory."""

from __future__ import annotations

import numpy as np

__all__ = ["is_finite"]


def is_finite(array: np.ndarray) -> bool:
    """True where no entry is NaN or infinite; integers always are finite.

    As reductions in the update program the same check took XLA 4 s of processor time to compile for ResNet-50's 428
    variables. A dot product of the array with itself is not finite if an entry is not, or if it overflows: then look
    twice.
    """
    if array.dtype.kind not in "fc":
        return True
    flat = array.reshape(-1)
    with np.errstate(all="ignore"):  # what overflows is no fault of the caller's
        if array.dtype in (np.float32, np.float64) and np.isfinite(np.dot(flat, flat)):
            return True
    return bool(np.isfinite(flat).all())
