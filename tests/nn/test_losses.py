"""Softmax cross-entropy: numpy and XLA against PyTorch, finite differences and each other."""

import numpy as np
import pytensor.tensor as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theano_mgpu.nn import softmax_cross_entropy
from theano_mgpu.nn.losses import SoftmaxCrossEntropy, SoftmaxCrossEntropyGradient


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_losses_and_gradients_are_those_of_pytorch(ops, softmax_cross_entropy_case, dtype):
    case = softmax_cross_entropy_case
    smoothing = case["settings"]["label_smoothing"]
    logits, g = case["logits"].astype(dtype), case["g"].astype(dtype)
    scale = np.abs(logits).max()
    for run in (ops.perform, ops.lower):
        (losses,) = run(SoftmaxCrossEntropy(smoothing), logits, case["labels"])
        (gradient,) = run(SoftmaxCrossEntropyGradient(smoothing), logits, case["labels"], g)
        assert losses.dtype == gradient.dtype == dtype
        np.testing.assert_allclose(losses, case["y"], rtol=0, atol=10 * scale * np.finfo(dtype).eps)
        np.testing.assert_allclose(gradient, case["logits_gradient"], rtol=0, atol=10 * scale * np.finfo(dtype).eps)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_gradients_are_those_of_finite_differences(ops, smoothing):
    logits = np.random.default_rng(0).normal(size=(3, 4))
    labels = np.array([3, 0, 1], "int32")
    ops.verify_gradient(lambda x: softmax_cross_entropy(x, labels, smoothing), logits)
    ops.verify_second_gradient(lambda x: softmax_cross_entropy(x, labels, smoothing), logits)


@given(st.integers(0, 5), st.integers(1, 6), st.sampled_from(["uint8", "int32", "int64"]), st.booleans())
@settings(max_examples=5, deadline=None)
def test_lowering_agrees_with_perform_on_any_shape(ops, examples, classes, dtype, smooth):
    rng = np.random.default_rng(examples + classes)
    logits = rng.normal(0, 5, size=(examples, classes)).astype("float32")
    labels = rng.integers(0, classes, size=examples).astype(dtype)
    ops.compare_lowering(SoftmaxCrossEntropy(0.1 * smooth), logits, labels)
    ops.compare_lowering(SoftmaxCrossEntropyGradient(0.1 * smooth), logits, labels, logits.sum(1))


def test_labels_of_a_byte_name_a_thousand_classes(ops):
    logits, labels = np.zeros((1, 1000), "float32"), np.array([255], "uint8")
    ops.compare_lowering(SoftmaxCrossEntropy(0.0), logits, labels)


def test_an_excluded_class_has_no_part_in_the_loss(ops):
    logits, labels = np.array([[0.0, -np.inf, 0.0]]), np.array([0])
    for run in (ops.perform, ops.lower):
        np.testing.assert_allclose(run(SoftmaxCrossEntropy(0.0), logits, labels)[0], np.log(2))
        gradient = run(SoftmaxCrossEntropyGradient(0.0), logits, labels, np.ones(1))[0]
        np.testing.assert_allclose(gradient, [[-0.5, 0, 0.5]])


@pytest.mark.parametrize("label", [-1, 3])
def test_a_label_out_of_range_is_named_with_the_range(ops, label):
    logits, labels = np.zeros((2, 3)), np.array([1, label])
    low, high = sorted([1, label])
    message = rf"softmax_cross_entropy\(\): labels go from 0 to 2, .* came labels from {low} to {high}"
    for run in (ops.perform, ops.lower):
        with pytest.raises(ValueError, match=message):
            run(SoftmaxCrossEntropy(0.0), logits, labels)
        with pytest.raises(ValueError, match=message):
            run(SoftmaxCrossEntropyGradient(0.0), logits, labels, np.ones(2))


def test_errors_name_the_function_and_what_came(ops):
    logits, labels = pt.matrix(), pt.vector(dtype="int32")
    with pytest.raises(TypeError, match=r"labels have dtype float64; expected integers"):
        softmax_cross_entropy(logits, labels.astype("float64"))
    with pytest.raises(TypeError, match=r"logits have dtype int32"):
        softmax_cross_entropy(logits.astype("int32"), labels)
    with pytest.raises(ValueError, match=r"expected logits \(examples, classes\)"):
        softmax_cross_entropy(logits, pt.matrix(dtype="int32"))
    with pytest.raises(ValueError, match=r"logits \(4, 3\) and labels \(5,\) have different numbers of examples"):
        softmax_cross_entropy(pt.tensor(shape=(4, 3)), pt.tensor(shape=(5,), dtype="int32"))
    with pytest.raises(ValueError, match="different numbers of examples"):
        ops.lower(SoftmaxCrossEntropy(0.0), np.zeros((4, 3)), np.zeros(5, int))
    with pytest.raises(ValueError, match="label_smoothing lies between 0 and 1"):
        softmax_cross_entropy(logits, labels, label_smoothing=2)
