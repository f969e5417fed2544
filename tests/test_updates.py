"""Update rules against ten steps of PyTorch's optimisers (``tests/reference/updates_torch.py``)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.compile.mode import Mode
from pytensor.graph.traversal import ancestors

from theano_mgpu import averages, updates
from theano_mgpu.averages import Average

REFERENCE = np.load(Path(__file__).parent / "reference" / "updates_torch.npz")
MODE = Mode(linker="py", optimizer=None)
STEPS = 10


def network(dtype="float64"):
    """The reference's problem: its parameters and its loss."""
    params = [pytensor.shared(REFERENCE[f"param.{i}"].astype(dtype), name=f"p{i}") for i in range(4)]
    x, y = (pt.constant(REFERENCE[name].astype(dtype)) for name in "xy")
    w1, b1, w2, b2 = params
    return pt.mean(pt.sqr(pt.tanh(x @ w1 + b1) @ w2 + b2 - y)), params


def flat(variables):
    return np.concatenate([np.ravel(variable.get_value()) for variable in variables])


def trajectory(new_values, rate, rates, watched):
    step = pytensor.function([rate], [], updates=new_values, mode=MODE)
    rows = []
    for value in rates:
        step(value)
        rows.append(flat(watched))
    return np.stack(rows)


def exempt_biases(params):
    for param in params[1::2]:
        param.tag.decay = False


def decayed_momentum(loss, params, rate):
    return updates.momentum(updates.apply_weight_decay(loss, params, 0.1), params, rate, 0.9)


def with_exempt_biases(rule):
    def exempted(loss, params, rate):
        exempt_biases(params)
        return rule(loss, params, rate)

    return exempted


RULES = {
    "sgd": (0.1, updates.sgd),
    "momentum": (0.05, lambda loss, params, rate: updates.momentum(loss, params, rate, 0.8)),
    "nesterov": (0.05, lambda loss, params, rate: updates.nesterov(loss, params, rate, 0.8)),
    "weight_decay": (0.05, decayed_momentum),
    "weight_decay_weights": (0.05, with_exempt_biases(decayed_momentum)),
    "adagrad": (0.1, updates.adagrad),
    "rmsprop": (0.02, lambda loss, params, rate: updates.rmsprop(loss, params, rate, 0.9, 1e-3)),
    "adadelta": (1.0, lambda loss, params, rate: updates.adadelta(loss, params, rate, 0.8, 1e-4)),
    "adam": (0.05, lambda loss, params, rate: updates.adam(loss, params, rate, 0.8, 0.99, 1e-3)),
    "adamw": (0.05, lambda loss, params, rate: updates.adamw(loss, params, rate, weight_decay=0.1)),
    "adamw_weights": (
        0.05,
        with_exempt_biases(lambda loss, params, rate: updates.adamw(loss, params, rate, weight_decay=0.1)),
    ),
    "lars": (0.5, lambda loss, params, rate: updates.lars(loss, params, rate, 0.9, 0.01, 0.02)),
    "lamb": (0.05, lambda loss, params, rate: updates.lamb(loss, params, rate, weight_decay=0.1)),
}
DEFAULTS = ["adagrad", "rmsprop", "adadelta", "adam", "adamw"]
ALL_RULES = ["sgd", "momentum", "nesterov", *DEFAULTS, "lars", "lamb"]


@pytest.mark.parametrize("pace", ["constant", "changing"])
@pytest.mark.parametrize("name", RULES)
def test_ten_steps_equal_pytorch(name, pace):
    base, rule = RULES[name]
    loss, params = network()
    rate = pt.scalar("rate", dtype="float64")
    rates = np.full(STEPS, base) if pace == "constant" else base * REFERENCE["rates"]
    ours = trajectory(rule(loss, params, rate), rate, rates, params)
    # Float64 on both sides; only the order of sums differs.
    np.testing.assert_allclose(ours, REFERENCE[f"{name}.{pace}"], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", DEFAULTS)
def test_defaults_are_those_of_pytorch(name):
    loss, params = network()
    step = pytensor.function([], [], updates=getattr(updates, name)(loss, params), mode=MODE)
    for row in REFERENCE[f"{name}_defaults.constant"]:
        step()
        np.testing.assert_allclose(flat(params), row, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("name", RULES)
def test_float32_follows_the_float64_trajectory(name):
    base, rule = RULES[name]
    loss, params = network("float32")
    rate = pt.scalar("rate", dtype="float32")
    ours = trajectory(rule(loss, params, rate), rate, np.full(STEPS, base, "float32"), params)
    assert ours.dtype == np.float32
    # Ten steps of float32 rounding (6e-8 each) through a network whose values are of order 1.
    np.testing.assert_allclose(ours, REFERENCE[f"{name}.constant"], rtol=1e-5, atol=2e-6)


@pytest.mark.parametrize(
    "rate",
    [
        0.1,
        1,
        np.float64(0.1),
        np.asarray(0.1),
        pt.scalar("rate", dtype="float64"),
        pt.scalar("rate", dtype="float32"),
        pytensor.shared(np.float64(0.1), name="rate"),
    ],
    ids=lambda rate: f"{type(rate).__name__}-{getattr(rate, 'dtype', '')}",
)
@pytest.mark.parametrize("name", ALL_RULES)
def test_new_values_keep_the_dtype_and_shape_of_a_float32_parameter(name, rate):
    _, params = network("float32")
    gradients = [pt.constant(np.ones(param.get_value().shape)) for param in params]  # float64, as numpy makes them
    new_values = getattr(updates, name)(gradients, params, rate)
    assert set(params) <= set(new_values)
    for variable, new_value in new_values.items():
        assert new_value.dtype == variable.dtype == ("int64" if variable.name == "p0.steps" else "float32")
        assert variable.type.is_super(new_value.type)
    arrays = [v for v in ancestors(new_values.values()) if getattr(v.type, "ndim", 0) > 0 and v.owner is not None]
    # The cast of the given gradients aside, no array is computed in float64.
    assert {v.dtype for v in arrays} == {"float32"}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("momentum", ["momentum"]),
        ("nesterov", ["momentum"]),
        ("rmsprop", ["rho", "epsilon"]),
        ("adadelta", ["rho", "epsilon"]),
        ("adam", ["beta1", "beta2", "epsilon"]),
        ("adamw", ["beta1", "beta2", "epsilon", "weight_decay"]),
        ("lars", ["momentum", "weight_decay", "trust"]),
        ("lamb", ["beta1", "beta2", "epsilon", "weight_decay"]),
    ],
)
def test_symbolic_hyperparameters_equal_numbers(name, options):
    numbers = dict(zip(options, [0.7, 0.9, 0.01, 0.05], strict=False))
    results = []
    for values in (numbers, {key: pytensor.shared(value) for key, value in numbers.items()}):
        loss, params = network()
        step = pytensor.function([], [], updates=getattr(updates, name)(loss, params, 0.1, **values), mode=MODE)
        step(), step()
        results.append(flat(params))
    np.testing.assert_allclose(results[0], results[1], rtol=1e-12)


def test_adam_without_memory_takes_steps_of_the_learning_rate():
    w = pytensor.shared(np.array([1.0, -2.0]), name="w")
    new_values = updates.adam([pt.constant([3.0, -0.5])], [w], 0.1, beta1=0, beta2=0, epsilon=0)
    pytensor.function([], [], updates=new_values, mode=MODE)()
    np.testing.assert_allclose(w.get_value(), [0.9, -1.9], rtol=1e-15)


def test_momentum_of_scaled_steps_is_lasagnes_velocity():
    rates = 0.05 * REFERENCE["rates"]
    loss, params = network()
    rate = pt.scalar("rate", dtype="float64")
    composed = updates.apply_momentum(updates.sgd(loss, params, rate), params, momentum=0.8)
    ours = trajectory(composed, rate, rates, params)

    loss, params = network()
    gradients = pytensor.function([], pytensor.grad(loss, params), mode=MODE)
    velocity = np.zeros_like(flat(params))
    for row, value in zip(ours, rates, strict=True):
        velocity = 0.8 * velocity - value * np.concatenate([np.ravel(g) for g in gradients()])
        moved, position = flat(params) + velocity, 0
        np.testing.assert_allclose(row, moved, rtol=1e-12)
        for param in params:
            shape = param.get_value().shape
            param.set_value(moved[position : position + int(np.prod(shape))].reshape(shape))
            position += int(np.prod(shape))


@pytest.mark.parametrize("compose", [updates.apply_momentum, updates.apply_nesterov])
def test_momentum_takes_any_rule_and_leaves_other_parameters_alone(compose):
    a, b = (pytensor.shared(np.array([1.0, 2.0]), name=name) for name in "ab")
    before = updates.adagrad([pt.constant([1.0, 1.0])] * 2, [a, b], 0.5)
    after = compose(before, [a], momentum=0.5)
    assert after[b] is before[b]
    assert [variable.name for variable in after if variable not in before] == ["a.velocity"]
    values = pytensor.function([], [before[a], after[a]], mode=MODE)()
    first_step = 0.5 * (1 + 0.5 * (compose is updates.apply_nesterov))
    np.testing.assert_allclose(values[0], [0.5, 1.5])
    np.testing.assert_allclose(values[1], np.array([1.0, 2.0]) - first_step)


def test_momentum_does_not_round_small_steps_of_large_parameters():
    w = pytensor.shared(np.array([1e4], dtype="float32"), name="w")
    new_values = updates.momentum([pt.constant(np.array([1e-5], dtype="float32"))], [w], 0.1)
    pytensor.function([], [], updates=new_values, mode=Mode(linker="py", optimizer=None))()
    (velocity,) = (variable for variable in new_values if variable.name == "w.velocity")
    np.testing.assert_allclose(velocity.get_value(), [1e-5], rtol=1e-6)


def test_clipping_scales_all_gradients_together_as_pytorch():
    loss, params = network()
    clipped = updates.clip_by_global_norm(averages.grad(loss, params), 0.7)
    step = pytensor.function([], [], updates=updates.sgd(clipped, params, 0.1), mode=MODE)
    for row in REFERENCE["clipped.constant"]:
        step()
        np.testing.assert_allclose(flat(params), row, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_clipping_keeps_short_gradients_and_dtypes(dtype):
    gradients = [pt.constant(np.array([3.0, 0.0], dtype=dtype)), pt.constant(np.array([[4.0]], dtype=dtype))]
    for max_norm, expected in [(10.0, 1.0), (1.0, 0.2), (np.float64(2.5), 0.5)]:
        clipped = updates.clip_by_global_norm(gradients, max_norm)
        assert [gradient.dtype for gradient in clipped] == [dtype, dtype]
        first, second = pytensor.function([], clipped, mode=MODE)()
        np.testing.assert_allclose([first[0], second[0, 0]], np.array([3.0, 4.0]) * expected, rtol=1e-6)


def test_average_of_parameters_uses_new_values_and_evaluates_through_givens():
    loss, params = network()
    new_values = updates.sgd(loss, params, 0.1)
    average = updates.ema(new_values, params, decay=0.9)
    assert [shadow.name for shadow in average] == ["p0.ema", "p1.ema", "p2.ema", "p3.ema"]
    assert list(average.shadows) == params
    step = pytensor.function([], [], updates=new_values | average, mode=MODE)
    for row in REFERENCE["ema.constant"]:
        step()
        np.testing.assert_allclose(flat(average), row, rtol=1e-10, atol=1e-12)
    on_averages = pytensor.function([], loss, givens=average.shadows, mode=MODE)()
    on_params = pytensor.function([], loss, mode=MODE)
    assert on_averages != pytest.approx(on_params())
    for param, shadow in average.shadows.items():
        param.set_value(shadow.get_value())
    assert on_averages == pytest.approx(on_params(), rel=1e-12)


def test_a_float32_average_stays_float32_and_follows_variables_without_updates():
    w = pytensor.shared(np.float32([2.0]), name="w")
    average = updates.ema({}, [w], decay=np.float64(0.75))
    (new_value,) = average.values()
    assert new_value.dtype == "float32"
    step = pytensor.function([], [], updates=average, mode=MODE)
    w.set_value(np.float32([6.0]))
    step()
    np.testing.assert_allclose(average.shadows[w].get_value(), [3.0])


def test_every_gradient_of_a_loss_is_averaged_over_the_shards():
    loss, params = network()
    for param, new_value in updates.sgd(loss, params, 0.1).items():
        assert any(v.owner is not None and isinstance(v.owner.op, Average) for v in ancestors([new_value])), param


def test_static_shapes_of_parameters_survive():
    w = pytensor.shared(np.ones((1, 3), dtype="float32"), name="w", shape=(1, 3))
    gradient = pt.matrix("g", dtype="float32")
    for name in ALL_RULES:
        for variable, new_value in getattr(updates, name)([gradient], [w], 0.1).items():
            assert variable.type.is_super(new_value.type)


@pytest.mark.parametrize("rule", [updates.lars, updates.lamb])
def test_layerwise_rules_survive_zero_weights_and_zero_gradients(rule):
    weights, still = (pytensor.shared(np.full(2, value, "float32"), name="w") for value in (0.0, 1.0))
    new_values = rule([pt.ones(2), pt.zeros(2)], [weights, still], 0.1, weight_decay=0.0)
    pytensor.function([], [], updates=new_values, mode=MODE)()
    np.testing.assert_allclose(weights.get_value(), [-0.1, -0.1], rtol=1e-5)
    np.testing.assert_array_equal(still.get_value(), [1.0, 1.0])


@pytest.mark.parametrize(("rule", "plain"), [(updates.lars, updates.momentum), (updates.lamb, updates.adam)])
def test_layerwise_rules_treat_exempt_parameters_as_their_plain_rule(rule, plain):
    w = pytensor.shared(np.array([1.0, 2.0]), name="w")
    w.tag.decay = False
    options = {"epsilon": 1e-6} if plain is updates.adam else {}
    gradient = pt.constant([0.3, -0.4])
    new_values = [rule([gradient], [w], 0.1, **options)[w], plain([gradient], [w], 0.1, **options)[w]]
    ours, expected = pytensor.function([], new_values, mode=MODE)()
    np.testing.assert_array_equal(ours, expected)


W = pytensor.shared(np.ones(3), name="w")
GRADIENT = pt.vector("gradient")


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: updates.sgd([GRADIENT], [W * 2], 0.1), r"sgd\(\): params\[0\].*not a shared variable"),
        (lambda: updates.adam([GRADIENT] * 2, [W, W], 0.1), r"adam\(\): 'w' is in 'params' twice"),
        (lambda: updates.sgd([GRADIENT], W, 0.1), "into a list"),
        (lambda: updates.momentum([GRADIENT] * 2, [W], 0.1), r"momentum\(\): 2 gradients for 1 parameters"),
        (lambda: updates.nesterov([None], [W], 0.1), r"nesterov\(\): the gradient with respect to 'w' is None"),
        (
            lambda: updates.sgd([pytensor.gradient.DisconnectedType()()], [W], 0.1),
            "with respect to 'w'.*does not depend on it",
        ),
        (lambda: updates.sgd(pt.sum(GRADIENT), [W], 0.1), r"sgd\(\): the loss does not depend on 'w'"),
        (lambda: updates.sgd(GRADIENT * W, [W], 0.1), r"scalar loss or a list of gradients"),
        (lambda: updates.sgd([pt.constant(np.ones(4))], [W], 0.1), r"shape \(4,\), the parameter \(3,\)"),
        (lambda: updates.sgd([pt.matrix("g")], [W], 0.1), r"with respect to 'w' has shape"),
        (lambda: updates.sgd([GRADIENT], [pytensor.shared(np.arange(3), name="i")], 0.1), "dtype int64"),
        (lambda: updates.rmsprop([GRADIENT], [W], -0.1), r"rmsprop\(\): 'learning_rate' is -0.1; .* at least 0"),
        (lambda: updates.sgd([GRADIENT], [W], float("nan")), "'learning_rate' is nan"),
        (lambda: updates.sgd([GRADIENT], [W], GRADIENT), "'learning_rate' should be a scalar"),
        (lambda: updates.sgd([GRADIENT], [W], lambda step: 0.1), "'learning_rate' should be a number"),
        (lambda: updates.momentum([GRADIENT], [W], 0.1, 1.0), r"momentum\(\): 'momentum' is 1; .* \[0, 1\)"),
        (lambda: updates.adam([GRADIENT], [W], beta2=1.5), r"adam\(\): 'beta2' is 1.5; .* \[0, 1\)"),
        (lambda: updates.adamw([GRADIENT], [W], weight_decay=-1), r"adamw\(\): 'weight_decay' is -1"),
        (lambda: updates.ema({}, [W], decay=1), r"ema\(\): 'decay' is 1"),
        (lambda: updates.apply_momentum({}, [W]), r"apply_momentum\(\): 'w' is in 'params' but has no update"),
        (lambda: updates.clip_by_global_norm(GRADIENT, 1.0), "should be a list of gradients"),
        (lambda: updates.clip_by_global_norm([None], 1.0), r"grads\[0\] is None"),
        (lambda: updates.clip_by_global_norm([GRADIENT], -1.0), "'max_norm' is -1"),
        (lambda: updates.apply_weight_decay([GRADIENT], [W], -1.0), "'weight_decay' is -1"),
    ],
)
def test_errors_name_the_rule_the_argument_and_the_remedy(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_the_parameter_that_a_loss_does_not_reach_is_named():
    used, blocked = (pytensor.shared(np.ones(3), name=name) for name in ("used", "blocked"))
    loss = pt.sum(used * pytensor.gradient.disconnected_grad(blocked))
    with pytest.raises(ValueError, match="does not depend on 'blocked'"):
        updates.sgd(loss, [used, blocked], 0.1)


@pytest.mark.parametrize("rule", ALL_RULES)
def test_no_parameters_is_no_updates(rule):
    assert getattr(updates, rule)([], [], 0.1) == {}
