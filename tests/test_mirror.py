"""Mirrors of shared variables: kept only while they are the host's own memory."""

from __future__ import annotations

import jax
import numpy as np
import pytensor
import pytest

from theano_mgpu.mirror import Mirrors, advanced, as_numpy, host_device, key_of, on_every, on_host, read, write


@pytest.fixture
def weight():
    return pytensor.shared(np.arange(64, dtype="float32"), name="weight")


def on_cpu(value: np.ndarray) -> jax.Array:
    """An array in JAX's own memory."""
    with jax.enable_x64(True):
        return jax.device_put(value, host_device(), may_alias=False)


@pytest.mark.parametrize("value", [np.float32(3), np.arange(6.0).reshape(2, 3), np.zeros((0, 2)), np.array([True])])
def test_results_are_numpy_arrays_to_write_into(value):
    result = as_numpy(on_cpu(np.asarray(value)), set())
    assert (type(result), result.dtype, result.shape) == (np.ndarray, value.dtype, value.shape)
    np.testing.assert_array_equal(result, value)
    assert result.flags.writeable


def test_a_result_is_its_devices_memory_unless_that_is_taken():
    array = on_cpu(np.ones(1000, "float32"))
    taken: set[int] = set()
    one, two = as_numpy(array, taken), as_numpy(array, taken)
    assert one.ctypes.data == array.unsafe_buffer_pointer()
    assert taken == {one.ctypes.data}
    assert not np.shares_memory(one, two)
    one[:] = 5
    np.testing.assert_array_equal(two, np.ones(1000))


def test_a_result_outlives_its_array():
    result = as_numpy(on_cpu(np.full(100_000, 7, "float32")), set())
    for _ in range(20):
        on_cpu(np.zeros(100_000, "float32"))
    np.testing.assert_array_equal(result, np.full(100_000, 7))


@pytest.mark.parametrize("devices", [1, 4])
def test_every_kind_of_write_is_seen(eight, weight, devices):
    mirrors = Mirrors(on_every(eight[:devices]))

    def mirrored() -> list[np.ndarray]:
        (array,) = mirrors.arrays([weight])
        return [np.asarray(shard.data) for shard in array.addressable_shards]

    for change in (
        lambda: weight.set_value(np.full(64, 2, "float32")),
        lambda: weight.set_value(np.full(64, 3, "float32"), borrow=True),
        lambda: write(weight, np.full(64, 4, "float32")),
        lambda: np.multiply(read(weight), 2, out=read(weight)),
        lambda: weight.set_value(np.zeros(3, "float32")),
    ):
        change()
        found = mirrored()
        assert len(found) == devices
        for value in found:
            np.testing.assert_array_equal(value, weight.get_value())


@pytest.mark.parametrize("devices", [1, 4])
def test_a_program_on_the_host_is_given_the_values_themselves(eight, weight, devices):
    mirrors = Mirrors(on_every(eight[:devices]))
    for _ in range(2):
        (given,) = mirrors.arguments([weight])
        assert isinstance(given, np.ndarray if devices == 1 else jax.Array)
        np.testing.assert_array_equal(given, weight.get_value())
        weight.set_value(np.full(64, 2, "float32"))
    if devices == 1:
        assert mirrors.arguments([weight])[0] is read(weight)


def test_committed_results_need_no_copy(eight, weight):
    mirrors = Mirrors(on_host())
    array = on_cpu(np.full(64, 9, "float32"))
    value = as_numpy(array, set())
    write(weight, value)
    mirrors.keep(weight, [value], value, array)
    assert mirrors.arrays([weight])[0] is array
    mirrors.drop([weight])
    assert mirrors.arrays([weight])[0] is not array


def test_keys_follow_the_generator_and_leave_it_alone():
    generator = np.random.default_rng(0)
    state = str(generator.bit_generator.state)
    key = key_of(generator)
    assert (key.dtype, key.shape) == (np.uint32, (2,))
    np.testing.assert_array_equal(key_of(generator), key)
    following = advanced(generator)
    assert str(generator.bit_generator.state) == state
    assert (key_of(following) != key).any()
