"""Batch norm: numpy and XLA against PyTorch, finite differences and each other."""

import jax
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes

from theano_mgpu.averages import Average
from theano_mgpu.lowering.dispatch import jax_funcify
from theano_mgpu.nn import batch_norm
from theano_mgpu.nn.normalisation import BatchNorm, BatchNormGradient


def draws(shape, dtype="float64"):
    rng = np.random.default_rng(len(shape) + sum(shape))
    x = rng.normal(2, 3, size=shape)
    return [a.astype(dtype) for a in (x, rng.normal(size=shape[-1]), rng.normal(size=shape[-1]))]


@pytest.mark.parametrize("sync", [False, True])
def test_results_statistics_and_gradients_are_those_of_pytorch(ops, batch_norm_case, sync):
    case = batch_norm_case
    x, gamma, beta = variables = [pt.tensor(shape=(None,) * case[name].ndim) for name in ("x", "gamma", "beta")]
    y, mean, var = batch_norm(x, gamma, beta, **case["settings"], sync=sync)
    gradients = pytensor.grad((y * case["g"]).sum(), variables)
    values = dict(zip(variables, (case["x"], case["gamma"], case["beta"]), strict=True))
    results = ops.evaluate([y, mean, var, *gradients], values)
    count = case["x"][..., 0].size
    expected = [case["y"], case["mean"], case["unbiased_var"] * (count - 1) / count]
    expected += [case[f"{name}_gradient"] for name in ("x", "gamma", "beta")]
    for result, value in zip(results, expected, strict=True):
        np.testing.assert_allclose(result, value, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_lowerings_give_what_pytorch_gives(ops, batch_norm_case, dtype):
    case = {k: v if k == "settings" else v.astype(dtype) for k, v in batch_norm_case.items()}
    y, mean, var = ops.lower(BatchNorm(1e-3), case["x"], case["gamma"], case["beta"])
    gradients = ops.lower(BatchNormGradient(1e-3), case["x"], case["gamma"], mean, var, case["g"])
    tolerance = {"rtol": 0, "atol": 300 * np.finfo(dtype).eps}
    names = ("y", "mean", "x_gradient", "gamma_gradient", "beta_gradient")
    for name, result in zip(names, (y, mean, *gradients), strict=True):
        assert result.dtype == dtype
        np.testing.assert_allclose(result, case[name], **tolerance)


def function_of(output, sync=False):
    return lambda x, gamma, beta: batch_norm(x, gamma, beta, eps=0.1, sync=sync)[output]


@pytest.mark.parametrize("sync", [False, True])
@pytest.mark.parametrize("output", range(3))
def test_gradient_of_each_output_is_that_of_finite_differences(ops, output, sync):
    ops.verify_gradient(function_of(output, sync), *draws((3, 2, 2, 2)))


def test_gradient_of_all_outputs_together_is_that_of_finite_differences(ops):
    def together(x, gamma, beta):
        y, mean, var = batch_norm(x, gamma, beta)
        return pt.sin(y) * mean + pt.sqrt(var)

    ops.verify_gradient(together, *draws((5, 3)))


@pytest.mark.parametrize("output", range(3))
def test_second_gradients_are_those_of_finite_differences(ops, output):
    def function(x, gamma, beta):
        # Every argument is needed, also where the output does not depend on it.
        return function_of(output)(x, gamma, beta) + (gamma * beta).sum()

    ops.verify_second_gradient(function, *draws((4, 2)))


@given(array_shapes(min_dims=2, max_dims=5, max_side=4), st.sampled_from(["float32", "float64"]))
@settings(max_examples=5, deadline=None)
def test_lowering_agrees_with_perform_on_any_shape(ops, shape, dtype):
    x, gamma, beta = draws(shape, dtype)
    # A variance of almost nothing divides by sqrt(eps).
    ops.compare_lowering(BatchNorm(0.1), x, gamma, beta, rounding=300)
    _, mean, var = ops.perform(BatchNorm(0.1), x, gamma, beta)
    ops.compare_lowering(BatchNormGradient(0.1), x, gamma, mean, var, x[::-1], rounding=1000)


@pytest.mark.parametrize("sync", [False, True])
def test_a_large_mean_costs_no_digits_of_the_variance(ops, sync):
    rng = np.random.default_rng(0)
    x = (1000 + rng.normal(size=(16, 8, 8, 4))).astype("float32")
    gamma, beta = np.ones(4, "float32"), np.zeros(4, "float32")
    exact = x.astype("float64")
    expected = (exact - exact.mean((0, 1, 2))) / np.sqrt(exact.var((0, 1, 2)) + 1e-5)
    variables = [pt.tensor(shape=(None,) * v.ndim, dtype="float32") for v in (x, gamma, beta)]
    performed = ops.evaluate(batch_norm(*variables, sync=sync), dict(zip(variables, (x, gamma, beta), strict=True)))
    # x itself is rounded to 6e-5.
    for y, _, var in (performed, ops.lower(BatchNorm(1e-5), x, gamma, beta)):
        np.testing.assert_allclose(y, expected, rtol=0, atol=5e-4)
        np.testing.assert_allclose(var, exact.var((0, 1, 2)), rtol=1e-4)


def test_half_precision_is_normalised_in_single(ops):
    x = (np.random.default_rng(0).normal(size=(64, 64, 3)) * 100).astype("float16")
    gamma, beta = np.ones(3, "float32"), np.zeros(3, "float32")
    exact = x.astype("float64").var((0, 1))
    for run in (ops.perform, ops.lower):
        y, _, var = run(BatchNorm(1e-5), x, gamma, beta)
        assert (y.dtype, var.dtype) == ("float16", "float32")
        np.testing.assert_allclose(var, exact, rtol=1e-4)
    x_gradient, gamma_gradient, _ = ops.lower(BatchNormGradient(1e-5), x, gamma, beta, var, x)
    assert (x_gradient.dtype, gamma_gradient.dtype) == ("float16", "float32")


def test_statistics_that_nobody_derives_by_cost_nothing():
    x, gamma, beta = pt.tensor4("x"), pt.vector("gamma"), pt.vector("beta")
    y, _, _ = batch_norm(x, gamma, beta)
    gradient = pytensor.grad(y.sum(), x)
    assert isinstance(gradient.owner.op, BatchNormGradient)


def test_images_are_read_in_two_passes_by_the_gradient_and_the_statistics(ops):
    """The statistics are two sums that do not wait for each other."""
    node = BatchNorm(1e-5).make_node(pt.tensor4(dtype="float32"), *[pt.vector(dtype="float32")] * 2)
    with jax.enable_x64(True):
        jaxpr = jax.make_jaxpr(jax_funcify(node.op, node=node))(
            np.ones((4, 3, 3, 2), "float32"), *[np.ones(2, "float32")] * 2
        )
    sums = [equation for equation in jaxpr.eqns if equation.primitive.name == "reduce_sum"]
    assert len(sums) == 2
    assert all(variable.aval.dtype == np.float32 for equation in jaxpr.eqns for variable in equation.outvars)


def test_sync_averages_mean_and_variance_over_the_shards():
    outputs = batch_norm(pt.tensor4(), pt.vector(), pt.vector(), sync=True)
    averages = [v for v in pytensor.graph.traversal.ancestors(outputs) if v.owner and isinstance(v.owner.op, Average)]
    assert len(averages) == 2


@pytest.mark.parametrize("sync", [False, True])
def test_errors_name_the_function_and_the_shapes(ops, sync):
    x, channels = pt.tensor(shape=(None, 4, 4, 3)), pt.tensor(shape=(3,))
    with pytest.raises(ValueError, match=r"batch_norm\(\): x has shape .*3\).* need shape \(3,\).*\(4,\)"):
        batch_norm(x, pt.tensor(shape=(4,)), channels, sync=sync)
    with pytest.raises(ValueError, match=r"batch_norm\(\): expected x \(\.\.\., channels\)"):
        batch_norm(channels, channels, channels, sync=sync)
    with pytest.raises(TypeError, match=r'batch_norm\(\): .*same float dtype.*\.astype\("float64"\)'):
        batch_norm(x, channels.astype("float32"), channels, sync=sync)
    with pytest.raises(TypeError, match=r"batch_norm\(\): x has dtype uint8"):
        batch_norm(x.astype("uint8"), channels, channels, sync=sync)
    with pytest.raises(ValueError, match="eps"):
        batch_norm(x, channels, channels, eps=-1, sync=sync)


def test_an_empty_batch_is_refused(ops):
    for run in (BatchNorm(1e-5).make_node, lambda *values: ops.lower(BatchNorm(1e-5), *values)):
        with pytest.raises(ValueError, match="nothing to take statistics of"):
            run(np.zeros((0, 3)), np.zeros(3), np.zeros(3))
