"""Targets of classes, and binary cross-entropy: numpy's formulas in float64."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import theano_mgpu as tm
from theano_mgpu.nn import binary_cross_entropy, one_hot


def test_labels_become_smoothed_targets(ops):
    labels = pt.vector("labels", dtype="int32")
    plain, smooth = ops.evaluate([one_hot(labels, 4), one_hot(labels, 4, 0.2)], {labels: np.array([3, 0], "int32")})
    assert plain.dtype == smooth.dtype == "float32"
    np.testing.assert_array_equal(plain, np.eye(4)[[3, 0]])
    np.testing.assert_allclose(smooth, [[0.05, 0.05, 0.05, 0.85], [0.85, 0.05, 0.05, 0.05]], rtol=1e-6)


@pytest.mark.parametrize("label", [-1, 4])
def test_a_label_out_of_range_is_an_error_at_the_call(eight, label):
    labels = pt.vector("labels", dtype="int32")
    step = tm.function([labels], one_hot(labels, 4), contexts=eight[:2])
    assert step(np.arange(4, dtype="int32")).shape == (4, 4)
    with pytest.raises(ValueError, match=r"one_hot\(\): labels go from 0 to 3; one is out of range"):
        step(np.array([0, label], "int32"))


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_the_loss_and_its_gradient_are_the_formulas(ops, dtype):
    rng = np.random.default_rng(0)
    z, t = rng.normal(0, 3, (5, 7)).astype(dtype), rng.uniform(0, 1, (5, 7)).astype("float32")
    logits, targets = pt.matrix("logits", dtype=dtype), pt.matrix("targets", dtype="float32")
    losses = binary_cross_entropy(logits, targets)
    result, gradient = ops.evaluate([losses, pytensor.grad(losses.mean(), logits)], {logits: z, targets: t})
    p, t = 1 / (1 + np.exp(-z.astype("float64"))), t.astype("float64")
    assert (result.dtype, result.shape) == (dtype, (5,))
    rtol = 1e-5 if dtype == "float32" else 1e-12
    np.testing.assert_allclose(result, -(t * np.log(p) + (1 - t) * np.log(1 - p)).mean(1), rtol=rtol)
    np.testing.assert_allclose(gradient, (p - t) / t.size, rtol=rtol, atol=rtol / 35)


def test_large_logits_neither_overflow_nor_lose_their_gradient(contexts):
    z = np.array([[200.0, -200.0], [-200.0, 200.0]] * 4, "float32")
    logits, targets = pt.matrix("logits", dtype="float32"), pt.matrix("targets", dtype="float32")
    losses = binary_cross_entropy(logits, targets)
    gradient = pytensor.grad(losses.sum(), logits)
    step = tm.function([logits, targets], [losses, gradient], contexts=contexts, shards=8)
    result, gradient = step(z, np.array([[1, 0]] * 8, "float32"))
    np.testing.assert_allclose(result, [0, 200] * 4, atol=1e-6)
    np.testing.assert_allclose(gradient, [[0, 0], [-0.5, 0.5]] * 4, atol=1e-6)


def test_arguments_that_make_no_sense_are_named():
    matrix, labels = pt.matrix(dtype="float32"), pt.ivector()
    with pytest.raises(TypeError, match=r"one_hot\(\): labels have dtype float32"):
        one_hot(pt.fvector(), 3)
    with pytest.raises(ValueError, match=r"one_hot\(\): labels have shape \(None, None\)"):
        one_hot(pt.imatrix(), 3)
    with pytest.raises(ValueError, match="num_classes is an int of at least 1; it came as 0"):
        one_hot(labels, 0)
    with pytest.raises(ValueError, match="label_smoothing lies between 0 and 1; it came as 2"):
        one_hot(labels, 3, 2)
    with pytest.raises(TypeError, match=r"targets have dtype int32; expected a float\. tm\.nn\.one_hot"):
        binary_cross_entropy(matrix, pt.imatrix())
    with pytest.raises(ValueError, match=r"both \(examples, classes\); came \(None, None\) and \(None,\)"):
        binary_cross_entropy(matrix, pt.fvector())
    five, six = (pt.tensor(shape=(None, size), dtype="float32") for size in (5, 6))
    with pytest.raises(ValueError, match=r"both \(examples, classes\); came \(None, 5\) and \(None, 6\)"):
        binary_cross_entropy(five, six)
