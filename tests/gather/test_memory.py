"""Memory for new values: used again when nobody holds it, and written into by programs."""

from __future__ import annotations

import jax
import numpy as np
import pytest
from jax import lax

from theano_mgpu.gather.memory import Memory
from theano_mgpu.vectors import ALIGNMENT

N = 100_000


def test_memory_that_nobody_holds_is_given_again():
    memory = Memory()
    vector = memory.vector(N, "float32")
    address = vector.ctypes.data
    assert (vector.shape, vector.dtype, address % ALIGNMENT) == ((N,), np.float32, 0)
    assert memory.vector(N, "float32").ctypes.data != address
    del vector
    assert memory.vector(N, "float32").ctypes.data == address


@pytest.mark.parametrize("view", [lambda v: v, lambda v: v[3:], lambda v: v[:60].reshape(3, 20)[1:], lambda v: v.data])
def test_memory_of_which_somebody_keeps_a_view_is_not(view):
    memory = Memory()
    kept = view(memory.vector(N, "float32"))
    np.asarray(kept)[:] = 7
    for _ in range(3):
        memory.vector(N, "float32")[:] = 0
    assert (np.asarray(kept) == 7).all()


def test_memory_that_an_array_of_jax_stands_for_is_not():
    memory = Memory()
    address = memory.vector(N, "float32").ctypes.data
    array = jax.device_put(memory.vector(N, "float32"))
    assert array.unsafe_buffer_pointer() == address
    assert memory.vector(N, "float32").ctypes.data != address


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int64"])
def test_a_program_writes_into_memory_that_it_is_lent(dtype):
    memory = Memory()
    memory.vector(N, dtype)[:] = 1
    with jax.enable_x64(True):
        write = jax.jit(lambda new, into: lax.dynamic_update_slice(into, new, (10,)), donate_argnums=1)
        lent = memory.lent(N, dtype)
        address = lent.unsafe_buffer_pointer()
        assert memory.vector(N, dtype).ctypes.data != address
        written = memory.kept(write(np.full(20, 5, dtype), lent))
    assert (written.ctypes.data, written.dtype) == (address, np.dtype(dtype))
    assert (written[10:30] == 5).all()
    assert (written[:10] == 1).all()
    assert (written[30:] == 1).all()
    written[0] = 3  # it is the caller's
    assert memory.vector(N, dtype) is not written


def test_vectors_of_another_size_or_dtype_have_memory_of_their_own():
    memory = Memory()
    addresses = {memory.vector(n, dtype).ctypes.data for n in (N, 2 * N) for dtype in ("float32", "int32")}
    assert len(addresses) == 4
