"""relu against its formula, and its gradient at 0 and NaN."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from theano_mgpu.nn import relu


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_relu_and_its_gradient(ops, dtype):
    values = np.array([-np.inf, -1, -0.0, 0, 2, np.inf, np.nan], dtype)
    x = pt.vector(dtype=dtype)
    y = relu(x)
    result, gradient = ops.evaluate([y, pytensor.grad(y.sum(), x)], {x: values})
    assert result.dtype == y.dtype == dtype
    np.testing.assert_array_equal(result, np.maximum(values, 0))
    np.testing.assert_array_equal(gradient[:-1], [0, 0, 0, 0, 1, 1])
