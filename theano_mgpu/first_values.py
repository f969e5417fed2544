"""Before the first step: what shared variables hold on rank 0 is what they hold on all ranks."""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Sequence
from typing import Any

import numpy as np
from pytensor.compile.sharedvalue import SharedVariable

from theano_mgpu.cluster import Cluster

__all__ = ["digest", "take_over_from_first"]


def take_over_from_first(cluster: Cluster, variables: Sequence[SharedVariable]) -> None:
    """Give ``variables``, in the same order on all ranks, rank 0's values, where any rank has others."""
    values = [variable.get_value(borrow=True) for variable in variables]
    everyone = cluster.gathered([digest(value) for value in values])
    for number, of_ranks in enumerate(zip(*everyone, strict=True)):
        if len(set(of_ranks)) > 1:
            value = cluster.from_first(values[number])
            if cluster.rank > 0:
                variables[number].set_value(value, borrow=True)


def digest(value: Any) -> bytes:
    """Of an array's dtype, shape and bytes, or of a generator's state."""
    found = hashlib.blake2b(digest_size=16)
    if isinstance(value, np.ndarray):
        found.update(f"{value.dtype} {value.shape}".encode())
        found.update(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data)
    else:
        found.update(pickle.dumps(value))
    return found.digest()
