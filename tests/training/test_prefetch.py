"""Batches that a thread fetches ahead of the step."""

from __future__ import annotations

import itertools
import os
import signal
import threading
import time

import numpy as np
import pytensor.tensor as pt
import pytest

import theano_mgpu as tm
from tests.training.network import COUNT, examples, fresh, train
from theano_mgpu.training import Batch, Batches, Interrupted, MetricsFile, Prefetch, Progress


class Source:
    """Batches numbered from the cursor on; it knows how many were asked for, and whether it was closed."""

    def __init__(self, seconds=0.0, ends=None, error=None):
        self.seconds, self.ends, self.error = seconds, ends, error
        self.asked, self.closed = 0, threading.Event()

    def batches_from(self, cursor):
        try:
            for number in itertools.count(cursor) if self.ends is None else range(cursor, self.ends):
                self.asked += 1
                time.sleep(self.seconds)
                yield Batch((np.full(4, number, "float32"),), number + 1, (number + 1) / 10)
            if self.error:
                raise self.error
        finally:
            self.closed.set()


def threads():
    return [thread for thread in threading.enumerate() if thread.name == "theano_mgpu prefetch"]


@pytest.fixture
def doubled(eight):
    x = pt.vector("x", dtype="float32")
    return tm.function([x], tm.average(2 * x.mean()), contexts=eight[:2])


@pytest.fixture(autouse=True)
def no_thread_is_left():
    yield
    assert not threads()


def test_batches_come_in_order_from_the_cursor_and_two_ahead_at_the_most(doubled):
    source = Source()
    with Prefetch(doubled, source) as ahead:
        batches = ahead.going_on(Progress(step=3, cursor=7))
        assert source.asked == 0
        for number in range(7, 12):
            given = next(batches)
            assert given.batch.cursor == number + 1
            assert given.learning_rate is None
            assert doubled(*given.arguments) == 2 * number
            time.sleep(0.02)
            assert source.asked <= number - 7 + 1 + 2
        assert len(threads()) == 1
    assert source.closed.is_set()


def test_each_step_has_its_own_learning_rate(eight):
    with Prefetch(fresh(eight).step, Batches(examples(), 8), lambda number: number / 10) as ahead:
        batches = ahead.going_on(Progress(step=5, cursor=COUNT))
        for number in (5, 6, 7):
            given = next(batches)
            assert given.learning_rate == number / 10
            assert given.arguments[-1] == number / 10
            assert len(given.arguments) == 3


def test_what_the_source_raises_comes_in_its_turn_as_it_was(doubled):
    error = KeyError("image 12")
    with Prefetch(doubled, Source(ends=3, error=error)) as ahead:
        batches = ahead.going_on(Progress())
        assert [next(batches).batch.cursor for _ in range(3)] == [1, 2, 3]
        with pytest.raises(KeyError, match="image 12") as caught:
            next(batches)
    assert caught.value is error


def test_what_the_schedule_raises_is_raised_too(doubled):
    with Prefetch(doubled, Source(), lambda number: 1 / (2 - number)) as ahead:
        batches = ahead.going_on(Progress())
        assert [next(batches).learning_rate for _ in range(2)] == [0.5, 1.0]
        with pytest.raises(ZeroDivisionError):
            next(batches)


def test_a_source_that_ends_ends(doubled):
    with Prefetch(doubled, Source(ends=2)) as ahead:
        assert len(list(ahead.going_on(Progress()))) == 2


@pytest.mark.parametrize("taken", [0, 1, 3])
def test_an_error_in_the_loop_ends_the_thread_and_closes_the_source(doubled, taken):
    source = Source(seconds=0.01)
    with pytest.raises(ArithmeticError), Prefetch(doubled, source) as ahead:  # noqa: PT012
        batches = ahead.going_on(Progress())
        for _ in range(taken):
            next(batches)
        raise ArithmeticError
    assert not threads()
    assert source.closed.is_set() == (taken > 0)


def test_a_slow_source_and_slow_steps_overlap(doubled):
    """What the loop waits for is less than what the source takes."""
    with Prefetch(doubled, Source(seconds=0.05)) as ahead:
        batches = ahead.going_on(Progress())
        next(batches)
        waited = 0.0
        for _ in range(6):
            time.sleep(0.05)  # a step
            begun = time.perf_counter()
            next(batches)
            waited += time.perf_counter() - begun
    assert waited < 0.5 * 6 * 0.05


class OfTwoSizes:
    """Images that grow after the first epoch, of three batches."""

    def batches_from(self, cursor):
        while True:
            size = 4 if cursor < 3 else 6
            images = np.random.default_rng(cursor).random((5, size, size), dtype="float32")
            cursor += 1
            yield Batch((images,), cursor, cursor / 3)


def sized(contexts, run, monkeypatch, *, sending):
    """Fit a step on images of any size; the checksum, and how many batches were sent ahead."""
    monkeypatch.setattr(tm.Step, "sends_ahead", sending)
    store = tm.ParameterStore()
    weight = store.param("w", (), tm.init.constant(1))
    images = pt.tensor3("images", dtype="float32")
    rate = pt.scalar("rate", dtype="float32")
    loss = ((images * weight - 2) ** 2).mean()
    updates = {weight: weight - rate * tm.grad(loss, weight)}
    step = tm.function([images, rate], tm.average(loss), updates=updates, contexts=contexts, shards=2)
    sent = []
    put = step.put
    monkeypatch.setattr(step, "put", lambda *arguments: sent.append(arguments[0].shape) or put(*arguments))
    schedule = tm.schedules.warmup_cosine(0.5, total_steps=9)
    options = {"learning_rate": schedule, "max_steps": 6, "log_every": 1, "progress": False}
    fitted = tm.training.fit(step, OfTwoSizes(), store=store, run=run, **options)
    return fitted.checksum, sent


def test_what_is_sent_ahead_gives_the_same_bits_also_where_images_grow(eight, tmp_path, monkeypatch):
    plain, none = sized(eight[:2], tmp_path / "plain", monkeypatch, sending=False)
    ahead, sent = sized(eight[:2], tmp_path / "ahead", monkeypatch, sending=True)
    assert ahead == plain
    assert none == []
    assert sent[:6] == [(5, 4, 4)] * 3 + [(5, 6, 6)] * 3
    turns, sent = sized(eight[:1], tmp_path / "turns", monkeypatch, sending=True)  # more than the device takes at once
    assert turns == plain
    assert sent == []
    lines = MetricsFile(tmp_path / "ahead" / "metrics.jsonl").lines()
    rate = tm.schedules.warmup_cosine(0.5, total_steps=9)
    assert [line["learning_rate"] for line in lines[:6]] == [rate(number) for number in range(6)]


def test_simulated_devices_are_not_sent_to_ahead(doubled):
    assert not doubled.sends_ahead


def test_waiting_is_what_the_loop_waited(eight, tmp_path):
    class Slow:
        def batches_from(self, cursor):
            for batch in Batches(examples(), 8).batches_from(cursor):
                time.sleep(0.05)
                yield batch

    made = fresh(eight)
    options = {"learning_rate": tm.schedules.constant(0.1), "progress": False, "log_every": 5}
    tm.training.fit(made.step, Slow(), store=made.store, run=tmp_path, max_steps=10, **options)
    line = MetricsFile(tmp_path / "metrics.jsonl").lines()[2]
    assert 0.02 < line["wait"] < 0.06


def test_the_thread_ends_with_a_run_that_an_error_or_a_signal_ended(eight, tmp_path):
    def broken(line):
        raise RuntimeError("a callback's own")

    with pytest.raises(RuntimeError, match="a callback's own"):
        train(tmp_path / "error", eight, max_steps=5, callbacks=[broken])
    assert not threads()
    with pytest.raises(Interrupted):
        train(tmp_path / "signal", eight, max_steps=5, callbacks=[lambda line: os.kill(os.getpid(), signal.SIGTERM)])
    assert not threads()
