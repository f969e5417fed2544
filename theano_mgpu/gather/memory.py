"""Memory that steps use again and again: in pages that are there already, and in large ones."""

from __future__ import annotations

import sys
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from theano_mgpu.host_memory import hold_in_huge_pages
from theano_mgpu.mirror import as_numpy, host_device, to_devices

__all__ = ["Memory"]


class Memory:
    """Vectors on the host, given again when nobody holds them any more.

    So a step's new parameters lie where those before the last ones did, unless somebody has kept a view of them. They
    are XLA's own, so that a program can be asked to write into one.
    """

    def __init__(self) -> None:
        self._vectors: dict[tuple[int, np.dtype], list[np.ndarray]] = {}
        self._arrays: dict[int, jax.Array] = {}  # by the address
        self._settled = 0

    def vector(self, size: int, dtype: Any) -> np.ndarray:
        """With any values, beginning at a multiple of 64 bytes."""
        vectors = self._vectors.get((size, np.dtype(dtype)), [])
        free = next((vector for vector in vectors if sys.getrefcount(vector) <= _UNHELD), None)
        return self._new(size, dtype) if free is None else free

    def lent(self, size: int, dtype: Any) -> jax.Array:
        """The same for a program, which is to be given it as a donation and makes another array of it: ``kept``."""
        vector = self.vector(size, dtype)
        self._vectors[size, vector.dtype] = [
            other for other in self._vectors[size, vector.dtype] if other is not vector
        ]
        return self._arrays.pop(vector.ctypes.data)

    def kept(self, array: jax.Array) -> np.ndarray:
        """The vector that a program has written; from now on one of these."""
        vector = as_numpy(array, set())
        self._vectors.setdefault((vector.size, vector.dtype), []).append(vector)
        self._arrays[vector.ctypes.data] = array
        return vector

    def settle(self) -> None:
        """What is new of it, at the end of a step: into huge pages, which neighbours share."""
        count = len(self._arrays)
        if count > self._settled:
            vectors = [vector for of_size in self._vectors.values() for vector in of_size]
            hold_in_huge_pages((vector.ctypes.data, vector.nbytes) for vector in vectors)
        self._settled = count

    def _new(self, size: int, dtype: Any) -> np.ndarray:
        with jax.enable_x64(True), to_devices():
            return self.kept(jnp.zeros(size, dtype, device=host_device()))


def _references_of_a_vector() -> int:
    """As many as one has that only its list, the loop over it and the call that counts hold."""
    vectors = [np.empty(0)]
    return next(sys.getrefcount(vector) for vector in vectors)


_UNHELD = _references_of_a_vector()
