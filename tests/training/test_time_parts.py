"""Where the time goes, and the sentence where it goes into waiting."""

from __future__ import annotations

import pytest

from theano_mgpu.training.time_parts import mean_split, time_split, verdict

WHOLE = {"step": 40, "wait": 0.02, "copy": 0.01, "compute": 0.2, "gather": 0.03, "update": 0.04, "step_seconds": 0.28}
UNDIVIDED = {**WHOLE, **dict.fromkeys(("copy", "compute", "gather", "update"))}


def test_a_split_has_the_known_parts_in_the_order_of_a_step():
    assert list(time_split(WHOLE).items()) == [
        ("wait", 0.02),
        ("copy", 0.01),
        ("compute", 0.2),
        ("gather", 0.03),
        ("update", 0.04),
    ]
    assert time_split(UNDIVIDED) == {"wait": 0.02, "step_seconds": 0.28}
    assert time_split({**WHOLE, "copy": None}).keys() == {"wait", "compute", "gather", "update"}
    assert time_split({"step": 40, "loss": 0.1}) == {}


def test_the_mean_is_over_lines_that_divide_a_step_alike():
    faster = {**WHOLE, "compute": 0.1}
    assert mean_split([UNDIVIDED, WHOLE, faster])["compute"] == pytest.approx(0.15)
    assert mean_split([]) == {}


@pytest.mark.parametrize(("wait", "said"), [(0.09, False), (0.11, True), (0.41, True)])
def test_more_than_a_tenth_of_waiting_is_a_bottleneck(wait, said):
    """Of a second a step, however the rest divides."""
    rest = 1 - wait
    for line in (
        {"step": 1, "wait": wait, "step_seconds": rest},
        {"step": 1, "wait": wait, "copy": rest / 2, "compute": rest / 2, "gather": None, "update": None},
    ):
        sentence = verdict(line)
        assert verdict(time_split(line)) == sentence
        if said:
            assert sentence.startswith(f"input is the bottleneck: {100 * wait:.0f} % of the time")
            assert "--workers" in sentence
        else:
            assert sentence is None


def test_nothing_is_said_of_what_is_not_known():
    assert verdict({}) is None
    assert verdict({"step": 1, "wait": 0.5}) is None
    assert verdict({"step": 1, "wait": None, "step_seconds": 0.5}) is None
    assert verdict({"step": 1, "wait": 0.0, "step_seconds": 0.0}) is None
