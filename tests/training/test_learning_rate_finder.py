"""The finder tries rates and leaves everything as it was."""

from __future__ import annotations

import numpy as np
import pytensor.tensor as pt
import pytest

import theano_mgpu as tm
from tests.training.network import examples, fresh
from theano_mgpu.data import Examples
from theano_mgpu.training import Batches, find_learning_rate


def test_everything_is_as_it_was(eight):
    made = fresh(eight)
    shared = made.step.get_shared()
    before = [str(v.get_value(borrow=True)) for v in shared], made.store.checksum()
    tried = find_learning_rate(made.step, Batches(examples(), 8), store=made.store, steps=20)
    assert ([str(v.get_value(borrow=True)) for v in shared], made.store.checksum()) == before
    np.testing.assert_allclose(np.diff(np.log(tried.rates)), np.log(1e7) / 19)
    assert tried.rates[0] == 1e-6


def test_a_parabola_diverges_past_its_curvature(eight):
    """loss = 2 w^2 from w = 1: gradient descent converges below a rate of 1/2, and is fastest at 1/4."""
    store = tm.ParameterStore()
    w = store.param("w", (), init=1.0)
    x, y, rate = pt.matrix("x", dtype="float32"), pt.ivector("y"), pt.scalar("rate", dtype="float32")
    loss = (2 * pt.sqr(w) * x + 0 * y[:, None]).mean()
    updates = tm.updates.sgd(tm.grad(loss, [w]), [w], learning_rate=rate)
    step = tm.function([x, y, rate], tm.average(loss), updates=updates, contexts=eight[:1])
    ones = Batches(Examples(np.ones((4, 1), "float32"), np.zeros(4, "int32")), 4)
    tried = find_learning_rate(step, ones, store=store, lowest=1e-3, highest=100, steps=60)
    assert tried.rates[-1] < 10  # the rest were not tried
    assert 0.02 < tried.suggestion < 0.5
    assert w.get_value() == 1


def test_arguments_are_checked(eight):
    made = fresh(eight)
    batches = Batches(examples(), 8)
    with pytest.raises(ValueError, match=r"positive and growing, but are 1 and 0.1"):
        find_learning_rate(made.step, batches, store=made.store, lowest=1, highest=0.1)
    with pytest.raises(ValueError, match="'steps' should be at least 2, not 1"):
        find_learning_rate(made.step, batches, store=made.store, steps=1)
    weight = made.store["out.weight"]
    before = weight.get_value()
    weight.set_value(np.full_like(before, np.nan))
    with pytest.raises(ValueError, match="no number at the first step"):
        find_learning_rate(made.step, batches, store=made.store)
    weight.set_value(before)
