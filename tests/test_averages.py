"""``average``, ``total``, ``maximum``, ``minimum`` and ``grad`` in plain PyTensor: the identity, and its gradient."""

from __future__ import annotations

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import PYTHON
from pytensor.gradient import DisconnectedInputError, verify_grad

import theano_mgpu as tm

REDUCTIONS = pytest.mark.parametrize("reduction", [tm.average, tm.total, tm.maximum, tm.minimum])


@REDUCTIONS
@pytest.mark.parametrize("shape", [(), (3,), (2, 3)])
def test_reductions_are_the_identity_in_plain_pytensor(reduction, shape):
    value = np.random.default_rng(0).standard_normal(shape)
    x = pt.tensor("x", shape=(None,) * len(shape), dtype="float64")
    np.testing.assert_array_equal(pytensor.function([x], reduction(x), mode=PYTHON)(value), value)


@pytest.mark.parametrize(("dtype", "averaged"), [("int32", "float64"), ("uint8", "float64"), ("float32", "float32")])
def test_averages_of_integers_are_float64(dtype, averaged):
    x = pt.vector("x", dtype=dtype)
    assert tm.average(x).dtype == averaged
    assert tm.total(x).dtype == tm.maximum(x).dtype == tm.minimum(x).dtype == dtype


@REDUCTIONS
def test_gradients_of_reductions_agree_with_finite_differences(reduction):
    value = np.random.default_rng(0).standard_normal((2, 3))
    rng = np.random.default_rng(1)
    verify_grad(lambda x: pt.sin(reduction(x**2)).sum(), [value], rng=rng, mode=PYTHON)


def test_grad_is_pytensors_gradient_averaged_and_named():
    x, weight, bias = pt.matrix("x"), pt.vector("weight"), pt.scalar("bias")
    loss = (pt.tanh(x @ weight + bias)).mean()
    loss.name = "loss"
    ours, stock = tm.grad(loss, [weight, bias]), pytensor.grad(loss, [weight, bias])
    assert [gradient.name for gradient in ours] == ["dloss/dweight", "dloss/dbias"]
    values = [np.random.default_rng(0).standard_normal(shape) for shape in ((4, 3), (3,), ())]
    results = pytensor.function([x, weight, bias], [*ours, *stock], mode=PYTHON)(*values)
    for one, other in zip(results[:2], results[2:], strict=True):
        np.testing.assert_array_equal(one, other)


def test_grad_keeps_the_form_and_the_options_of_pytensors():
    x, unused = pt.vector("x"), pt.vector("unused")
    loss = (x**2).mean()
    assert tm.grad(loss, x).type == x.type
    assert isinstance(tm.grad(loss, (x,)), tuple)
    assert isinstance(tm.grad(loss, [x]), list)
    with pytest.raises(DisconnectedInputError):
        tm.grad(loss, [x, unused])
    _, zero = tm.grad(loss, [x, unused], disconnected_inputs="ignore")
    assert not pytensor.function([unused], zero, mode=PYTHON)(np.ones(3)).any()
