"""Initial values: their sizes follow the papers' formulas."""

from __future__ import annotations

import numpy as np
import pytest

from theano_mgpu import init
from theano_mgpu.store import ParameterStore


@pytest.mark.parametrize(
    ("initialiser", "fan"),
    [
        (init.he_normal(), 3 * 5 * 40),
        (init.he_normal(mode="fan_out"), 3 * 5 * 200),
        (init.he_normal(gain=1.0), 3 * 5 * 80),
    ],
)
def test_he_normal_has_variance_two_over_fan(initialiser, fan):
    values = initialiser(np.random.default_rng(0), (3, 5, 40, 200))
    deviation = np.sqrt(2 / fan)
    # 120,000 numbers: the standard error of their deviation is 0.2 %, of their mean 0.3 % of it.
    assert values.std() == pytest.approx(deviation, rel=0.01)
    assert abs(values.mean()) < 0.015 * deviation
    # A normal distribution has 4.55 % outside of two deviations; a truncated or uniform one has none.
    assert np.mean(np.abs(values) > 2 * deviation) == pytest.approx(0.0455, rel=0.1)


@pytest.mark.parametrize(("shape", "fans"), [((100, 300), 400), ((3, 3, 20, 60), 720)])
def test_glorot_uniform_has_the_papers_limits(shape, fans):
    values = init.glorot_uniform()(np.random.default_rng(0), shape)
    limit = np.sqrt(6 / fans)
    assert np.abs(values).max() == pytest.approx(limit, rel=1e-3)
    assert np.abs(values).max() <= np.float32(limit)
    assert values.var() == pytest.approx(2 / fans, rel=0.03)


@pytest.mark.parametrize(("initialiser", "number"), [(init.constant(0.1), 0.1), (init.zeros(), 0), (init.ones(), 1)])
def test_constants_are_the_same_everywhere(initialiser, number):
    value = ParameterStore().param("p", (2, 3), initialiser).get_value()
    np.testing.assert_array_equal(value, np.full((2, 3), number, "float32"))


@pytest.mark.parametrize("initialiser", [init.he_normal(), init.glorot_uniform()])
@pytest.mark.parametrize("shape", [(), (4,), (0, 4)])
def test_shapes_without_in_and_out_are_refused(initialiser, shape):
    with pytest.raises(ValueError, match=r"\(\.\.\., in, out\)"):
        initialiser(np.random.default_rng(0), shape)


def test_another_mode_is_refused():
    with pytest.raises(ValueError, match="'fan_in' or 'fan_out', not 'fan_avg'"):
        init.he_normal(mode="fan_avg")


@pytest.mark.parametrize("name", [n for n in init.__all__ if n != "constant"])
def test_an_initialiser_given_without_calling_it_says_so(name):
    with pytest.raises(ValueError, match=r"called first, as in init=tm\.init\.zeros\(\)"):
        ParameterStore().param("p", (2, 3), getattr(init, name))
