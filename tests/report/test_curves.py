"""Curves stand where their numbers are, and axes have round ticks."""

from __future__ import annotations

import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theano_mgpu.report.charts import Axis, Chart, line_chart, nice_ticks, stacked_chart
from theano_mgpu.report.matrix import confused_pairs
from theano_mgpu.report.series import Point, Series, metric_series, split_series, thinned
from theano_mgpu.report.story import duration, training_seconds


def polylines(svg: str) -> list[np.ndarray]:
    found = re.findall(r"<polyline[^>]* points=\"([^\"]*)\"", svg)
    return [np.array([pair.split(",") for pair in points.split()], "float64") for points in found]


finite = st.floats(-1e6, 1e6).map(lambda value: round(value, 6))


@given(low=finite, span=st.floats(1e-6, 1e6), most=st.integers(2, 9))
def test_ticks_are_round_even_and_inside(low, span, most):
    ticks = nice_ticks(low, low + span, most)
    assert 1 <= len(ticks) <= most
    assert ticks[0] >= low - 1e-8 * span - 1e-9
    assert ticks[-1] <= low + span + 1e-8 * span + 1e-9
    if len(ticks) > 2:
        gaps = np.diff(ticks)
        np.testing.assert_allclose(gaps, gaps[0], rtol=1e-4, atol=1e-9)
        digits = f"{gaps.mean():.3e}"
        assert digits[:4] in ("1.00", "2.00", "2.50", "5.00"), digits


def test_whole_ticks_are_whole():
    assert nice_ticks(0, 3, 7, whole=True) == [0, 1, 2, 3]
    assert nice_ticks(0, 90, 7, whole=True) == [0, 20, 40, 60, 80]
    assert nice_ticks(2.0, 2.0, 7) == [2.0]


@given(st.lists(st.tuples(st.integers(1, 1000), finite), min_size=3, max_size=30, unique_by=lambda pair: pair[0]))
def test_points_are_placed_in_proportion(pairs):
    """In x and in y the places are one straight line over the values, as numpy fits it."""
    pairs = sorted(pairs)
    points = [Point(float(x), y, f"step {x}") for x, y in pairs]
    svg = line_chart(Chart("Loss", Axis(1000.0), str), [Series("train", points, "train")])
    places = polylines(svg)[0]
    assert places.shape == (len(pairs), 2)
    steps, values = np.array(pairs, "float64").T
    assert (np.diff(places[:, 0]) > -1e-9).all()
    np.testing.assert_allclose(np.polyval(np.polyfit(steps, places[:, 0], 1), steps), places[:, 0], atol=0.2)
    if np.ptp(values) > 1e-3:
        fitted = np.polyfit(values, places[:, 1], 1)
        assert fitted[0] < 0  # larger is higher
        np.testing.assert_allclose(np.polyval(fitted, values), places[:, 1], atol=0.2)
    assert places.min() >= 0
    assert places[:, 0].max() <= 440
    assert places[:, 1].max() <= 250


def test_stacked_parts_add_up():
    points = [[Point(float(step), value, "") for step in (1, 2)] for value in (1.0, 2.0, 3.0)]
    parts = [Series(name, one, name) for name, one in zip(("wait", "copy", "compute"), points, strict=True)]
    first, second, third = polylines(stacked_chart(Chart("Seconds", Axis(2.0), str), parts))
    bottom = 250 - 36
    heights = bottom - np.array([first[0, 1], second[0, 1], third[0, 1]])
    np.testing.assert_allclose(heights / heights[0], [1, 3, 6], rtol=0.01)


def test_names_at_the_ends_of_curves_do_not_overlap():
    series = [Series(f"curve {n}", [Point(1.0, 0.0, ""), Point(2.0, 0.001 * n, "")], "val") for n in range(4)]
    svg = line_chart(Chart("Loss", Axis(2.0), str, low=0.0, high=1.0), series)
    heights = sorted(float(y) for y in re.findall(r'class="name val" x="[\d.]+" y="([\d.]+)"', svg))
    assert len(heights) == 4
    assert min(np.diff(heights)) >= 13.9
    assert heights[-1] <= 250 - 36 + 5


@given(st.lists(finite, max_size=50), st.integers(1, 20))
def test_thinning_keeps_the_mean_and_the_end(values, most):
    points = [Point(float(place), value, f"{place}") for place, value in enumerate(values)]
    kept = thinned(points, most)
    assert len(kept) <= most
    assert [point.x for point in kept] == sorted(point.x for point in kept)
    if points:
        assert (kept[-1].x, kept[-1].label) == (points[-1].x, points[-1].label)
    if points and len(points) % len(kept) == 0:
        assert np.mean([point.y for point in kept]) == pytest.approx(np.mean(values), rel=1e-9, abs=1e-6)


def test_series_leave_out_what_is_no_number():
    lines = [
        {"step": 1, "loss": 2.0, "top1": None},
        {"step": 2, "loss": None, "ema_loss": 1.5, "val_loss": 1.0, "epoch": 0.5},
        {"step": 3, "loss": True, "val_loss": float("nan")},
    ]
    found = {one.name: [(p.x, p.y, p.label) for p in one.points] for one in metric_series(lines, "loss")}
    assert found == {
        "train": [(1.0, 2.0, "step 1")],
        "val": [(2.0, 1.0, "step 2 · epoch 0.50")],
        "ema": [(2.0, 1.5, "step 2 · epoch 0.50")],
    }
    assert list(found) == ["train", "val", "ema"]
    assert metric_series(lines, "top1") == []


def test_a_split_leaves_out_the_first_line_and_cuts_off_a_pause():
    lines = [{"step": 1, "wait": 0.0, "step_seconds": 60.0}]
    lines += [{"step": step, "wait": 0.5, "step_seconds": 0.5} for step in range(2, 9)]
    lines += [{"step": 9, "wait": 50.0, "step_seconds": 50.0}]
    wait, step = split_series(lines)
    assert (wait.kind, step.kind, step.name) == ("wait", "step_seconds", "step")
    assert [point.y for point in wait.points] == [0.5] * 7 + [2.0]  # four times the median of a second, halved


def test_confused_pairs_are_the_most_frequent_mistakes():
    confusion = np.random.default_rng(0).integers(0, 30, (9, 9))
    brute = sorted((-confusion[t, a], t, a) for t in range(9) for a in range(9) if t != a and confusion[t, a])
    assert confused_pairs(confusion, 10) == [(t, a, -n) for n, t, a in brute[:10]]
    assert confused_pairs(np.diag([3, 4])) == []


def test_time_adds_up_over_lines():
    lines = [{"step": 10, "wait": 0.1, "step_seconds": 0.9}, {"step": 15, "wait": 0.0, "compute": 2.0, "update": 1.0}]
    assert training_seconds(lines) == pytest.approx(10 * 1.0 + 5 * 3.0)


@pytest.mark.parametrize(
    ("seconds", "said"),
    [(2.34, "2.3 s"), (42, "42 s"), (200, "3 min 20 s"), (3599.6, "1 h 00 min"), (18421, "5 h 07 min")],
)
def test_durations_in_two_units(seconds, said):
    assert duration(seconds) == said


def test_points_stand_at_their_ticks():
    """The ticks' labels give the scale, in epochs of 50 steps, and the curve is where they say."""
    values = [2.5, 1.25, 0.6, 0.3, 0.2]
    points = [Point(float(step), value, "") for step, value in zip((50, 100, 150, 175, 200), values, strict=True)]
    chart = Chart("Loss", Axis(200.0, epochs=4.0), lambda value: f"{value:g}", low=0.0)
    svg = line_chart(chart, [Series("train", points, "train")])
    across = [(float(at), float(said)) for at, said in re.findall(r'middle" x="([\d.]+)" y="[\d.]+">(\d+)<', svg)]
    upwards = [(float(at) - 4, float(said)) for at, said in re.findall(r'end" x="[\d.]+" y="([\d.]+)">([\d.]+)<', svg)]
    assert [said for _, said in across] == [0, 1, 2, 3, 4]
    assert [said for _, said in upwards] == [0, 0.5, 1, 1.5, 2, 2.5]
    xs, ys = polylines(svg)[0].T
    np.testing.assert_allclose(np.interp(xs, *zip(*across, strict=True)), [1, 2, 3, 3.5, 4], atol=0.01)
    np.testing.assert_allclose(np.interp(ys, *zip(*upwards[::-1], strict=True)), values, atol=0.01)
