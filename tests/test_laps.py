"""Where a call's seconds go."""

from __future__ import annotations

import statistics
import time

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import theano_mgpu as tm
from theano_mgpu.laps import PARTS

WIDTH, UNITS = 192, 1_000_000


def vectors(**options):
    """A step whose update rule works on a million numbers a term, and whose device part on little."""
    x = pt.vector("x", dtype="float32")
    w = pytensor.shared(np.ones(UNITS, "float32"), name="w")
    average = tm.average(x.mean())
    new = w
    for term in range(1, 12):
        new = new + pt.sin(w * np.float32(term)) * np.float32(1e-3) * average
    return tm.function([x], average, updates={w: new}, **options), np.ones(8, "float32")


def products(rounds=1, **options):
    """A step that multiplies matrices, and updates a single number."""
    x = pt.tensor("x", shape=(None, WIDTH, WIDTH), dtype="float32")
    w = pytensor.shared(np.float32(1), name="w")
    y = x * w
    for _ in range(8):
        y = pt.tanh(y @ x)
    loss = y.mean()
    step = tm.function([x], tm.average(loss), updates={w: w - np.float32(1e-3) * tm.grad(loss, w)}, **options)
    return step, np.full((4 * rounds, WIDTH, WIDTH), 1e-3, "float32")


def mostly(part, step, batch, calls=5):
    """Whether this part has most of the median call's time; the parts are the call, where nothing comes between."""
    step(batch)  # compiles
    shares, unseen = [], []
    for _ in range(calls):
        begun = time.perf_counter()
        step(batch)
        spent = time.perf_counter() - begun
        shares.append(step.seconds[part] / spent)
        unseen.append(spent - sum(step.seconds.values()))
        assert unseen[-1] >= 0
    assert min(unseen) < 0.03 * spent
    return statistics.median(shares) > 0.6


@pytest.mark.parametrize("devices", [1, 4])
@pytest.mark.parametrize("update_on", ["host", "device"])
def test_a_heavy_device_part_is_compute(eight, devices, update_on):
    assert mostly("compute", *products(contexts=eight[:devices], update_on=update_on))


@pytest.mark.parametrize("devices", [1, 2])
def test_shards_that_take_turns_are_compute_too(eight, devices):
    assert mostly("compute", *products(rounds=2, contexts=eight[:devices], shards=8), calls=3)


@pytest.mark.parametrize(("update_on", "part"), [("host", "update"), ("device", "compute")])
def test_a_large_update_is_update_where_the_host_does_it(eight, update_on, part):
    assert mostly(part, *vectors(contexts=eight[:2], update_on=update_on))


def test_answers_alone_are_waited_for_as_compute(eight):
    x = pt.tensor("x", shape=(None, WIDTH, WIDTH), dtype="float32")
    y = x
    for _ in range(8):
        y = pt.tanh(y @ x)
    predict = tm.function([x], y.mean(axis=(1, 2)), contexts=eight[:2])
    assert mostly("compute", predict, np.full((4, WIDTH, WIDTH), 1e-3, "float32"))


def test_a_large_batch_is_copy(eight):
    """Which two devices are sent, and of which they read a row."""
    x = pt.matrix("x", dtype="float32")
    step = tm.function([x], tm.average(x[:, 0].mean()), contexts=eight[:2])
    batch = np.asfortranarray(np.ones((64, 250_000), "float32"))
    assert mostly("copy", step, batch, calls=3)


def test_an_attempt_that_ran_out_of_memory_counts():
    x = pt.matrix("x", dtype="float32")
    loss = pt.exp(x).sum(axis=1).mean()
    contexts = tm.contexts("cpu:2", memory=300_000)
    step = tm.function([x], tm.average(loss), contexts=contexts)
    assert step.seconds == dict.fromkeys(PARTS, 0.0)
    begun = time.perf_counter()
    with pytest.warns(RuntimeWarning, match="out of memory with 2 shards"):
        step(np.ones((16, 16_000), "float32"))
    assert sum(step.seconds.values()) == pytest.approx(time.perf_counter() - begun, rel=0.03)


def test_each_call_begins_anew_and_what_was_given_stays(eight):
    step, batch = products(contexts=eight[:1])
    step(batch)
    first = step.seconds
    kept = dict(first)
    step(batch)
    assert first == kept
    assert sum(step.seconds.values()) < sum(first.values())  # which compiled
