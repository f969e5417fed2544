"""Top-k accuracy against ranks counted by hand."""

import numpy as np
import pytensor.tensor as pt
import pytest

from theano_mgpu.nn import top_k_accuracy


def accuracy(ops, logits, labels, k):
    x, y = pt.matrix(dtype="float32"), pt.vector(dtype="int32")
    result = ops.evaluate(top_k_accuracy(x, y, k), {x: np.asarray(logits, "float32"), y: np.asarray(labels, "int32")})
    assert result.dtype == "float32"
    return result.tolist()


@pytest.mark.parametrize("k", [1, 2, 5, 9])
def test_the_label_is_among_the_k_largest(ops, k):
    rng = np.random.default_rng(k)
    logits, labels = rng.normal(size=(40, 7)), rng.integers(0, 7, size=40)
    largest = np.argsort(-logits, axis=1)[:, :k]
    assert accuracy(ops, logits, labels, k) == [float(label in row) for label, row in zip(labels, largest, strict=True)]


@pytest.mark.parametrize(
    ("logits", "label", "k", "expected"),
    [
        ([1, 1, 0], 1, 1, 1),  # a tie counts for the label
        ([2, 1, 1], 2, 1, 0),
        ([np.nan, 1, 0], 1, 1, 0),  # NaN is above every number
        ([np.nan, 1, 0], 1, 2, 1),
        ([np.nan, 1, 0], 0, 3, 0),  # a label without a number is wrong
        ([np.nan] * 3, 0, 1, 0),
        ([np.inf, 0, -np.inf], 0, 1, 1),
        ([1, 2, 3], -1, 3, 0),  # no class
        ([1, 2, 3], 3, 3, 0),
    ],
)
def test_ties_nan_and_labels_out_of_range(ops, logits, label, k, expected):
    assert accuracy(ops, [logits], [label], k) == [expected]


def test_errors_name_the_function():
    with pytest.raises(ValueError, match=r"top_k_accuracy\(\): k is an int of at least 1"):
        top_k_accuracy(pt.matrix(), pt.lvector(), 0)
    with pytest.raises(TypeError, match=r"top_k_accuracy\(\): labels have dtype float64"):
        top_k_accuracy(pt.matrix(), pt.vector())
