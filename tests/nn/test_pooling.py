"""Pools: numpy and XLA against PyTorch, finite differences and each other."""

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theano_mgpu.nn import avg_pool2d, global_avg_pool2d, max_pool2d
from theano_mgpu.nn.pooling import AveragePool2dGradient, MaxPool2dGradient, MaxPool2dPick

POOLS = [max_pool2d, avg_pool2d]
SETTINGS = [{"size": 2}, {"size": 3, "stride": 2, "padding": 1}, {"size": (3, 2), "stride": (1, 2), "padding": "same"}]


def op_of(pool, **options):
    return pool(pt.zeros((1, 32, 32, 1)), **options).owner.op


def test_max_and_its_gradient_are_those_of_pytorch_also_at_ties(ops, max_pool2d_case):
    case = max_pool2d_case
    op = op_of(max_pool2d, **case["settings"])
    for run in (ops.perform, ops.lower):
        np.testing.assert_array_equal(run(op, case["x"])[0], case["y"])
        (gradient,) = run(MaxPool2dGradient(*op.settings), case["x"], case["y"], case["g"])
        np.testing.assert_allclose(gradient, case["x_gradient"], rtol=0, atol=1e-14)


def test_mean_and_its_gradient_are_those_of_pytorch(ops, avg_pool2d_case):
    case = avg_pool2d_case
    op = op_of(avg_pool2d, **case["settings"])
    for run in (ops.perform, ops.lower):
        np.testing.assert_allclose(run(op, case["x"])[0], case["y"], rtol=0, atol=1e-14)
        (gradient,) = run(AveragePool2dGradient(*op.settings), case["x"], case["g"])
        np.testing.assert_allclose(gradient, case["x_gradient"], rtol=0, atol=1e-14)


def test_mean_without_the_padding_is_that_of_pytorch(ops, avg_pool2d_case):
    x = pt.tensor4("x")
    y = avg_pool2d(x, **avg_pool2d_case["settings"], count_include_pad=False)
    result = ops.evaluate(y, {x: avg_pool2d_case["x"]})
    np.testing.assert_allclose(result, avg_pool2d_case["y_inside"], rtol=0, atol=1e-14)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("options", SETTINGS)
def test_gradients_are_those_of_finite_differences(ops, pool, options):
    # Different by more than the step of the differences.
    x = np.random.default_rng(0).permutation(60).reshape(1, 6, 5, 2) / 10
    ops.verify_gradient(lambda x: pool(x, **options), x)
    ops.verify_second_gradient(lambda x: pool(x, **options), x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@given(st.data())
@settings(max_examples=5, deadline=None)
def test_lowering_agrees_with_perform_on_any_shape(ops, dtype, data):
    def draw(low, high):
        return data.draw(st.integers(low, high))

    size = (draw(1, 3), draw(1, 3))
    padding = data.draw(st.sampled_from([0, "same", ((0, size[0] - 1), (size[1] - 1, 0))]))
    options = {"size": size, "stride": (draw(1, 3), draw(1, 3)), "padding": padding}
    rng = np.random.default_rng(draw(0, 99))
    x = rng.integers(-2, 2, size=(draw(0, 2), draw(size[0], 7), draw(size[1], 7), draw(1, 3))).astype(dtype)
    for pool in POOLS:
        ops.compare_lowering(op_of(pool, **options), x)
    largest, mean = op_of(max_pool2d, **options), op_of(avg_pool2d, **options)
    (y,) = ops.perform(largest, x)
    g, u = rng.normal(size=y.shape).astype(dtype), rng.normal(size=x.shape).astype(dtype)
    ops.compare_lowering(MaxPool2dGradient(*largest.settings), x, y, g)
    ops.compare_lowering(MaxPool2dPick(*largest.settings), x, y, u)
    ops.compare_lowering(AveragePool2dGradient(*mean.settings), x, g)


def test_large_windows_lower_without_unrolling(ops):
    rng = np.random.default_rng(0)
    x = rng.integers(-2, 2, size=(1, 11, 12, 2)).astype(float)
    largest, mean = op_of(max_pool2d, size=9, padding=1), op_of(avg_pool2d, size=9, stride=2)
    (y,) = ops.perform(largest, x)
    ops.compare_lowering(largest, x)
    ops.compare_lowering(mean, x)
    ops.compare_lowering(MaxPool2dGradient(*largest.settings), x, y, rng.normal(size=y.shape))
    ops.compare_lowering(MaxPool2dPick(*largest.settings), x, y, rng.normal(size=x.shape))
    ops.compare_lowering(AveragePool2dGradient(*mean.settings), x, rng.normal(size=ops.perform(mean, x)[0].shape))


def test_padding_is_never_the_largest_and_nan_is_kept(ops):
    x = np.full((1, 4, 4, 1), -np.inf)
    x[0, 3, 3, 0] = np.nan
    op = op_of(max_pool2d, size=2, padding=1)
    for run in (ops.perform, ops.lower):
        (y,) = run(op, x)
        expected = np.full((1, 3, 3, 1), -np.inf)
        expected[0, 2, 2, 0] = np.nan
        np.testing.assert_array_equal(y, expected)
        (gradient,) = run(MaxPool2dGradient(*op.settings), x, y, np.ones_like(y))
        first = np.zeros((4, 4))
        first[np.ix_([0, 1, 3], [0, 1, 3])] = 1
        first[3, 3] = 0
        np.testing.assert_array_equal(gradient[0, ..., 0], first)


def test_global_mean_and_its_gradient(ops):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    variable = pt.tensor4()
    np.testing.assert_allclose(ops.evaluate(global_avg_pool2d(variable), {variable: x}), x.mean((1, 2)), rtol=1e-12)
    ops.verify_gradient(global_avg_pool2d, x)
    assert global_avg_pool2d(pt.tensor4(dtype="float32")).dtype == "float32"


@pytest.mark.parametrize("pool", POOLS)
def test_shapes_are_known_before_running(ops, pool):
    x = pt.tensor4("x")
    y = pool(x, 3, 2, 1)
    shape = pytensor.function([x], y.shape, mode=ops.mode)
    assert not any(isinstance(node.op, type(y.owner.op)) for node in shape.maker.fgraph.toposort())
    assert tuple(shape(np.zeros((2, 8, 7, 3)))) == (2, 4, 4, 3)
    assert pool(pt.tensor(shape=(None, 8, None, 3)), 2).type.shape == (None, 4, None, 3)


@pytest.mark.parametrize("pool", POOLS)
def test_errors_name_the_function_and_the_sizes(pool):
    name = pool.__name__
    with pytest.raises(ValueError, match=rf"{name}\(\): no window of size \(5, 5\) .* \(4, 8\)"):
        pool(pt.tensor(shape=(1, 4, 8, 3)), 5)
    with pytest.raises(ValueError, match=rf"{name}\(\): no window of size \(5, 5\) .* \(4, 8\)"):
        op_of(pool, size=5).perform(None, [np.zeros((1, 4, 8, 3))], [[None]])
    with pytest.raises(ValueError, match=rf"{name}\(\): padding 2 is not smaller than the window \(2, 2\)"):
        pool(pt.tensor4(), 2, padding=2)
    with pytest.raises(ValueError, match=rf"{name}\(\): x has 2 axes"):
        pool(pt.matrix(), 2)
    with pytest.raises(TypeError, match=rf"{name}\(\): x has dtype int64"):
        pool(pt.tensor4(dtype="int64"), 2)
