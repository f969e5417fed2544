"""Rounds that run ahead of the use of their results."""

from __future__ import annotations

import threading
import weakref

import jax.numpy as jnp
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest

import theano_mgpu as tm
from theano_mgpu.launch import launched_ahead
from theano_mgpu.programs import DeviceProgram, Report, ShardResults


def rounds(count, launched):
    def launch(number):
        launched.append((number, threading.get_ident()))
        return ShardResults([jnp.asarray(number)], Report([], [], []))

    return [lambda number=number: launch(number) for number in range(count)]


@pytest.mark.parametrize("devices", [1, 2])
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_results_come_in_order(eight, devices, count):
    results = launched_ahead(rounds(count, []), eight[:devices])
    assert [int(result.values[0]) for result in results] == list(range(count))


@pytest.mark.parametrize("devices", [1, 2])
def test_no_more_rounds_are_launched_than_fit(eight, devices):
    launched = []
    for used, _ in enumerate(launched_ahead(rounds(9, launched), eight[:devices])):
        assert len(launched) == min(used + 2, 9)


def test_one_simulated_device_runs_two_rounds_at_a_time(eight):
    launched = []
    list(launched_ahead(rounds(4, launched), eight[:1]))
    first, second, third, fourth = (thread for _, thread in launched)
    assert first == third != second == fourth


def test_a_single_round_is_launched_at_once(eight):
    launched = []
    list(launched_ahead(rounds(1, launched), eight[:1]))
    assert launched == [(0, threading.get_ident())]


def test_several_devices_are_launched_by_one_thread(eight):
    """Which keeps their averages in one order everywhere."""
    launched = []
    list(launched_ahead(rounds(4, launched), eight[:2]))
    assert {thread for _, thread in launched} == {threading.get_ident()}


def test_gradients_of_past_rounds_are_let_go(eight, monkeypatch):
    """A batch of many rounds takes no more memory than one of few."""
    gradients: list[weakref.ref] = []
    alive = []
    run = DeviceProgram.__call__

    def counted(self, *arguments):
        alive.append(sum(gradient() is not None for gradient in gradients))
        result = run(self, *arguments)
        gradients.append(weakref.ref(result.values[0]))
        return result

    monkeypatch.setattr(DeviceProgram, "__call__", counted)
    w = pytensor.shared(np.ones((4, 2), "float32"), "w")
    x = pt.matrix("x", dtype="float32")
    loss = ((x @ w) ** 2).mean()
    step = tm.function([x], updates={w: w - tm.grad(loss, w)}, contexts=eight[:2], shards=32)
    step(np.ones((32, 4), "float32"))
    assert len(alive) == 16
    assert max(alive) < 8
