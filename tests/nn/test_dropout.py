"""Dropout: what is kept, how it is scaled, and how the generator goes on."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

from theano_mgpu.nn import dropout


@pytest.fixture
def rng():
    return pytensor.shared(np.random.default_rng(3), name="rng")


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_entries_are_zero_at_the_rate_and_scaled_elsewhere(ops, rng, dtype):
    x = pt.matrix(dtype=dtype)
    _, y = dropout(x, 0.25, rng)
    result, gradient = ops.evaluate([y, pytensor.grad(y.sum(), x)], {x: np.full((100, 100), 3, dtype)})
    assert result.dtype == dtype
    np.testing.assert_allclose(np.unique(result), [0, 4], rtol=1e-6)
    # Four standard deviations of 10,000 draws.
    assert (result == 0).mean() == pytest.approx(0.25, abs=0.018)
    np.testing.assert_allclose(gradient, result / 3, rtol=1e-6)


def test_the_next_generator_draws_anew(ops, rng):
    x = pt.vector()
    next_rng, y = dropout(x, 0.5, rng)
    step = pytensor.function([x], y, updates={rng: next_rng}, mode=ops.mode)
    assert not np.array_equal(step(np.ones(64)), step(np.ones(64)))


def test_rate_zero_changes_nothing(rng):
    x = pt.vector()
    assert dropout(x, 0, rng) == (rng, x)


def test_arguments_that_make_no_sense_are_named(rng):
    with pytest.raises(ValueError, match=r"dropout\(\): rate is at least 0 and less than 1; it came as 1"):
        dropout(pt.vector(), 1, rng)
    with pytest.raises(TypeError, match=r"dropout\(\): x has dtype int64"):
        dropout(pt.lvector(), 0.5, rng)
    with pytest.raises(TypeError, match=r"dropout\(\): rng is a random generator variable"):
        dropout(pt.vector(), 0.5, np.random.default_rng(0))
