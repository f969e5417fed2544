"""Schedules against PyTorch's schedulers (``tests/reference/updates_torch.py``) and their formulas."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytensor.tensor as pt
import pytest

from theano_mgpu import schedules

REFERENCE = np.load(Path(__file__).parent / "reference" / "updates_torch.npz")


@pytest.mark.parametrize(
    ("name", "schedule"),
    [
        ("cosine", schedules.warmup_cosine(0.4, 20, final=0.01)),
        ("cosine_warmup", schedules.warmup_cosine(0.4, 20, warmup_steps=5, final=0.01)),
        ("step", schedules.step_decay(0.1, [3, 7, 8], factor=0.5)),
        ("polynomial", schedules.polynomial(0.3, 10, power=2.0)),
        ("polynomial_warmup", schedules.polynomial(0.3, 12, warmup_steps=4)),
    ],
)
def test_rates_equal_pytorchs_schedulers(name, schedule):
    expected = REFERENCE[f"schedule.{name}"]
    ours = [schedule(step) for step in range(len(expected))]
    assert {type(rate) for rate in ours} == {float}
    np.testing.assert_allclose(ours, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    "schedule",
    [
        schedules.warmup_cosine(0.8, 10, warmup_steps=3, final=0.2),
        schedules.polynomial(0.8, 10, warmup_steps=3, final=0.2),
        schedules.step_decay(0.8, [10], factor=0.25, warmup_steps=3),
        schedules.linear_warmup(lambda step: 0.8 if step < 10 else 0.2, 3),
    ],
)
def test_warmup_climbs_evenly_to_the_peak_and_the_end_is_final(schedule):
    np.testing.assert_allclose([schedule(step) for step in range(4)], [0.2, 0.4, 0.6, 0.8], rtol=1e-12)
    np.testing.assert_allclose([schedule(10), schedule(11), schedule(10**6)], 0.2, rtol=1e-12)


def test_constant_is_constant_and_takes_numpy_integers():
    rate = schedules.constant(1)
    assert [rate(0), rate(np.int64(7))] == [1.0, 1.0]
    assert type(rate(0)) is float


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: schedules.constant(-0.1), r"constant\(\): 'value' is -0.1"),
        (lambda: schedules.warmup_cosine(float("nan"), 10), "'peak' is nan"),
        (lambda: schedules.warmup_cosine(0.1, 10, warmup_steps=10), "'total_steps' is 10 and 'warmup_steps' 10"),
        (lambda: schedules.warmup_cosine(0.1, 10.5), r"'total_steps' is 10.5; it should be an integer"),
        (lambda: schedules.polynomial(0.1, 10, power=0), "'power' is 0"),
        (lambda: schedules.polynomial(0.1, 10, final=-1), "'final' is -1"),
        (lambda: schedules.step_decay(0.1, [5, 5]), r"'boundaries' should increase, but are \[5, 5\]"),
        (lambda: schedules.step_decay(0.1, [5], warmup_steps=-1), "'warmup_steps' is -1"),
        (lambda: schedules.linear_warmup(0.1, 5), "'schedule' should be a function"),
        (lambda: schedules.constant(0.1)(-1), "the step is -1"),
    ],
)
def test_errors_name_the_schedule_and_the_argument(make, message):
    with pytest.raises(ValueError, match=message):
        make()


@pytest.mark.parametrize("step", [0.5, pt.lscalar("step")])
def test_a_step_that_is_no_integer_is_refused_with_the_remedy(step):
    with pytest.raises(TypeError, match="input of the step function"):
        schedules.warmup_cosine(0.1, 10)(step)
