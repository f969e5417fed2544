"""How the values of two shards become one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from theano_mgpu.gather.combination import combination, combined

KINDS = ["average", "total", "maximum", "minimum"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int32", "uint8", "bool"])
def test_a_value_and_nothing_is_the_value_to_the_bit(kind, dtype):
    """Of -0.0 there is none among what is summed."""
    values = {"f": [1.5, -2, 0.0, -0.0, np.inf, -np.inf, np.nan], "i": [-7, 0, 7], "u": [0, 7, 255], "b": [0, 1]}
    value = np.array(values[np.dtype(dtype).kind], dtype)
    if kind in ("average", "total"):
        value[value == 0] = 0
    with jax.enable_x64(True):
        how = combination(kind)
        device_value = jnp.asarray(value)
        for pair in ((device_value, how.nothing_like(device_value)), (how.nothing_like(device_value), device_value)):
            found = np.asarray(how.combine(*pair))
            assert (found.dtype, found.tobytes()) == (value.dtype, value.tobytes())


def test_arrays_are_combined_one_by_one():
    left = [np.array(row, "float32") for row in ([1, 5], [1, 5], [[1, np.nan]])]
    right = [np.array(row, "float32") for row in ([2, 3], [2, 3], [[2, 3]])]
    found = combined(("total", "minimum", "maximum"), left, right)
    expected = [[3, 8], [1, 3], [[2, np.nan]]]
    for result, by_hand in zip(found, expected, strict=True):
        np.testing.assert_array_equal(np.asarray(result), by_hand)
