"""The loss scale of float16: gradients that would vanish survive, steps that overflow are left out, no more shows."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import PYTHON, assert_close, states
from pytensor.gradient import disconnected_grad

import theano_mgpu as tm
from theano_mgpu.averages import LossScale as ScaleOp
from theano_mgpu.loss_scale import LossScale
from theano_mgpu.mirror import on_every, placed

BOTH = pytest.mark.parametrize("update_on", ["host", "device"])
X = np.random.default_rng(0).standard_normal((8, 3)).astype("float32")
LARGE = 2.0**40  # no gradient but 0 is finite then


def regression(size: float = 1.0, rule: Any = None, **options: Any) -> tuple[tm.Step, Any]:
    """A layer, its loss times ``size``, and a step of momentum, or of ``rule`` of the gradient."""
    weight = pytensor.shared(np.random.default_rng(1).standard_normal((3, 2)).astype("float32"), name="weight")
    x = pt.matrix("x", dtype="float32")
    loss = (pt.tanh(x @ weight) ** 2).mean() * np.float32(size)
    gradient = tm.grad(loss, weight)
    updates = tm.updates.momentum([gradient], [weight], 0.1) if rule is None else {weight: weight - rule(gradient)}
    step = tm.function([x], tm.average(loss), updates=updates, **{"precision": "float16", **options})
    return step, weight


# The rule


def test_a_scale_is_halved_down_to_one_and_doubled_after_good_steps(monkeypatch):
    monkeypatch.setattr(LossScale, "patience", 3)
    scale = LossScale()
    assert scale.value == 2**15
    scale.follow(left_out=True)
    assert scale.value == 2**14
    for left_out in (False, False, True, False, False):
        scale.follow(left_out=left_out)
    assert scale.value == 2**13  # not three in a row
    scale.follow(left_out=False)
    assert scale.value == 2**14
    scale.value = 1.5
    scale.follow(left_out=True)
    scale.follow(left_out=True)
    assert scale.value == 1
    scale.value = LossScale.largest
    for _ in range(3):
        scale.follow(left_out=False)
    assert scale.value == LossScale.largest


@pytest.mark.parametrize("devices", [0, 1, 2])
def test_one_infinity_among_many_numbers_is_found(eight, devices):
    """In numpy arrays, on the host's device, on several."""
    for bad in (None, 70000):
        values = [np.ones(100_000, "float32"), np.arange(5)]
        if bad is not None:
            values[0][bad] = np.inf
        arrays = placed(values, on_every(eight[:devices])) if devices else values
        assert LossScale().excuses([arrays], values_are_finite=True) == (bad is not None)


# In a step


@BOTH
def test_a_step_that_overflows_is_left_out_and_halves_the_scale(eight, update_on):
    step, _ = regression(contexts=eight[:2], update_on=update_on)
    before = states(*step.get_shared())
    step.loss_scale = LARGE
    loss = step(X)
    assert (step.skipped, step.loss_scale) == (1, LARGE / 2)
    assert states(*step.get_shared()) == before
    while step.skipped == step._calls:
        step(X)
    assert 2**15 <= step.loss_scale == LARGE / 2**step.skipped
    assert states(*step.get_shared()) != before
    skipped = step.skipped
    for _ in range(3):
        later = step(X)
    assert step.skipped == skipped
    assert later < loss


@BOTH
def test_an_overflow_is_seen_in_the_gradient_where_the_rule_hides_it(eight, update_on):
    """A clipped infinity is a number, and so is what stands for NaN."""
    step, weight = regression(
        rule=lambda g: pt.switch(pt.isnan(g), 0, pt.clip(g, -1, 1)), contexts=eight[:2], update_on=update_on
    )
    before = states(weight)
    step.loss_scale = LARGE
    step(X)
    assert (step.skipped, states(weight)) == (1, before)


def test_a_rule_that_overflows_halves_the_scale_too(eight):
    """As PyTorch's would not: here the new values are looked at anyway."""
    step, weight = regression(rule=lambda g: g * np.float32(1e38) * np.float32(1e38), contexts=eight[:1])
    before = states(weight)
    step(X)
    assert (step.skipped, step.loss_scale, states(weight)) == (1, 2**14, before)


def test_the_scale_grows_after_good_steps_and_nothing_is_compiled_again(eight, monkeypatch):
    monkeypatch.setattr(LossScale, "patience", 2)
    step, _ = regression(contexts=eight[:2])
    scales = []
    for _ in range(5):
        step(X)
        scales.append(step.loss_scale / 2**15)
    assert scales == [1, 2, 2, 4, 4]
    assert step._assembly.program._run._cache_size() == 1


@pytest.mark.parametrize("shards", [1, 3])
def test_the_scale_changes_no_digit_of_the_gradients(eight, shards):
    """A power of two, where nothing is as small as float16's smallest."""
    found = set()
    for scale in (2.0**8, 2.0**12):
        step, weight = regression(contexts=eight[:1], shards=shards)
        step.loss_scale = scale
        step(X)
        found.add((*states(weight),))
    assert len(found) == 1


def test_gradients_too_small_for_float16_survive_by_the_scale(eight):
    """Those of a loss of 1e-7 are below 6e-8, float16's smallest number."""
    gradients = {}
    for precision, scale in (("float32", None), ("float16", 1.0), ("float16", 2.0**15)):
        step, weight = regression(1e-7, rule=lambda g: g * np.float32(1e7), precision=precision, contexts=eight[:2])
        step.loss_scale = scale
        before = weight.get_value()
        step(X)
        gradients[scale] = before - weight.get_value()
    exact = gradients[None]
    assert np.abs(gradients[2.0**15] - exact).max() < 3e-3 * np.abs(exact).max()
    assert np.abs(gradients[1.0] - exact).max() > 0.1 * np.abs(exact).max()


@BOTH
def test_at_a_scale_of_one_nonfinite_decides_as_ever(eight, update_on):
    """A NaN in the data is no overflow: no scale helps."""
    bad = X.copy()
    bad[5, 0] = np.nan
    step, weight = regression(contexts=eight[:2], update_on=update_on)
    before = states(weight)
    for _ in range(15):
        step(bad)
    assert (step.loss_scale, step.skipped) == (1, 15)
    with pytest.raises(tm.NonFiniteError, match=r"shards \[1\] gave non-finite averages.*loss scale has fallen to 1"):
        step(bad)
    assert (step.loss_scale, step.skipped, states(weight)) == (1, 15, before)
    step(X)
    assert states(weight) != before

    skipping, weight = regression(contexts=eight[:2], update_on=update_on, nonfinite="skip")
    applying, changed = regression(contexts=eight[:2], update_on=update_on, nonfinite="ignore")
    skipping.loss_scale = applying.loss_scale = 1
    skipping(bad)
    applying(bad)
    assert (skipping.skipped, skipping.loss_scale, states(weight)) == (1, 1, before)
    assert np.isnan(changed.get_value()).any()


def test_a_checkpoint_keeps_the_scale(eight):
    first, _ = regression(contexts=eight[:1])
    first.loss_scale = 1024
    second, _ = regression(contexts=eight[:1])
    second.loss_scale = first.loss_scale
    assert second.loss_scale == 1024


@pytest.mark.parametrize("value", [0, -1, np.inf, np.nan, "large", None, True])
def test_a_scale_is_a_positive_number(eight, value):
    step, _ = regression(contexts=eight[:1])
    with pytest.raises(ValueError, match=r"loss_scale: expected a positive number"):
        step.loss_scale = value
    assert step.loss_scale == 2**15


@pytest.mark.parametrize("precision", ["float32", "bfloat16", "float64"])
def test_other_precisions_have_no_scale(eight, precision):
    step, _ = regression(precision=precision, contexts=eight[:1])
    assert step.loss_scale is None
    step.loss_scale = None
    with pytest.raises(ValueError, match=r"step: loss_scale: only a step with precision=\"float16\""):
        step.loss_scale = 2.0


def test_a_step_without_gradients_has_no_scale(eight):
    x = pt.matrix("x", dtype="float32")
    assert tm.function([x], tm.average(x.mean()), precision="float16", contexts=eight[:1]).loss_scale is None


# What the scale passes through


def gradient_of_gradient(x: Any, w: Any, loss: Any) -> Any:
    return tm.grad((tm.grad(loss, w) ** 2).sum(), w)


def of_a_total(x: Any, w: Any, loss: Any) -> Any:
    return tm.grad(tm.total((x @ w).sum()) / np.float32(9) + loss, w)


def from_known_gradients(x: Any, w: Any, loss: Any) -> Any:
    hidden = x @ w
    return tm.grad((hidden**2).mean(), w, known_grads={hidden: pt.ones_like(hidden) / x.shape[0].astype("float32")})


def beside_a_penaltys(x: Any, w: Any, loss: Any) -> Any:
    return tm.grad(loss + (tm.grad((w**2).sum(), w) ** 2).sum() / 100, w)


def beside_a_constant_one(x: Any, w: Any, loss: Any) -> Any:
    """The inner gradient is the same on every shard, so that no average is taken."""
    direction = disconnected_grad(tm.grad((w**2).sum(), w))
    return tm.grad(loss + ((x @ direction) * (x @ w)).mean(), w)


@pytest.mark.parametrize(
    "gradient", [gradient_of_gradient, of_a_total, from_known_gradients, beside_a_penaltys, beside_a_constant_one]
)
def test_gradients_are_unscaled_whatever_way_they_took(eight, gradient):
    """As in plain PyTensor, to float16's 11 bits; also after another scale."""
    w, x = pytensor.shared(np.array([0.3, -0.2, 0.5], "float32"), name="w"), pt.matrix("x", dtype="float32")
    loss = (pt.tanh(x @ w) ** 2).mean()
    wanted = gradient(x, w, loss)
    exact = pytensor.function([x], wanted, mode=PYTHON)(X)
    step = tm.function([x], wanted, precision="float16", contexts=eight[:2])
    for scale in (2.0**10, 2.0**5):
        step.loss_scale = scale
        assert_close(step(X), exact, tolerance=5e-3)


def test_plain_functions_have_no_scale_left():
    x, w = pt.matrix("x", dtype="float32"), pytensor.shared(np.ones(3, "float32"))
    function = pytensor.function([x], tm.grad((x @ w).mean(), w), mode=PYTHON)
    assert not any(isinstance(node.op, ScaleOp) for node in function.maker.fgraph.apply_nodes)
    assert_close(function(X), X.mean(0))
