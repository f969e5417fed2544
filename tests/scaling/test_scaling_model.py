"""The model against numbers by hand, and against exchanges that are enumerated message by message."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from theano_mgpu.scaling import Exchange, Machines, Work, curve, device_update, host_update, step_seconds

WORK = Work(compute=0.5, examples=32, gradients=100_000_000, arrays=4)
MACHINES = Machines(link=1e9, latency=1e-3, message=1e-5, bus=5e9, inside=20e9, host_memory=10e9, device_memory=100e9)
SIMULATED = dataclasses.replace(MACHINES, bus=math.inf)


def test_four_nodes_of_one_device_by_hand():
    exchange = host_update(WORK, SIMULATED, 4, 1)
    assert exchange.link == pytest.approx(2 * 0.75 * 0.1)
    assert exchange.memory == pytest.approx(0.01 * (1 + 4 / 4))  # four pieces of a quarter read, and the rule's quarter
    assert exchange.messages == pytest.approx(2 * 4 * 3 * 1e-5)
    assert exchange.latency == pytest.approx(10 * 1.01e-3)
    assert exchange.total == pytest.approx(0.15 + 0.02 + 24e-5 + 10.1e-3)


def test_two_nodes_of_eight_devices_by_hand():
    exchange = host_update(WORK, MACHINES, 2, 8)
    assert exchange.bus == pytest.approx(2 * 0.1 / 5)
    assert exchange.link == pytest.approx(0.1)
    # The buses' 16 copies; eight gradients read and one sum written; two halves read, and the rule's half.
    assert exchange.memory == pytest.approx(0.01 * (16 + 9 + 1 + 4 / 2))


def test_one_rank_exchanges_nothing_but_has_its_update():
    exchange = host_update(WORK, SIMULATED, 1, 4)
    assert dataclasses.replace(exchange, memory=0.0).total == 0.0
    assert exchange.memory == pytest.approx(0.01 * (4 + 4))  # of benchmarks/gather.py: a mean of four, and momentum
    assert device_update(WORK, MACHINES, 1, 1) == Exchange(memory=pytest.approx(5 * 1e-3))


@pytest.mark.parametrize(("nodes", "ranks"), [(2, 1), (3, 1), (4, 2), (3, 4), (1, 4)])
def test_the_host_updates_bytes_are_those_of_its_messages(nodes, ranks):
    size, total = 1200, nodes * ranks
    sent, between, within, messages = np.zeros(total), np.zeros(nodes), np.zeros(nodes), np.zeros(total)
    for source in range(total):
        for target in range(total):
            if source != target:
                there_and_back = 2 * size / total
                sent[source] += there_and_back
                messages[source] += 2
                outside = source // ranks != target // ranks
                (between if outside else within)[source // ranks] += there_and_back
    work = dataclasses.replace(WORK, gradients=size, arrays=1)
    exchange = host_update(work, MACHINES, nodes, ranks, ranks)
    assert np.allclose(sent, 2 * (total - 1) / total * size)
    assert np.allclose(between, exchange.link * MACHINES.link)
    assert np.allclose(2 * within, exchange.inside * MACHINES.host_memory)
    assert np.allclose(messages, exchange.messages / MACHINES.message)


@pytest.mark.parametrize(("nodes", "devices"), [(1, 8), (2, 1), (4, 2), (8, 8)])
def test_the_device_updates_bytes_are_those_of_halving_and_doubling(nodes, devices):
    total, size = nodes * devices, 4096
    values = np.random.default_rng(0).integers(100, size=(total, size))
    parts = [(0, size)] * total
    halved = values.copy()
    between, within, read = np.zeros(nodes), np.zeros(total), np.zeros(total)
    for level in range(total.bit_length() - 1):
        before, new = halved.copy(), []
        for device in range(total):
            other, (begin, end) = device ^ 1 << level, parts[device]
            middle = (begin + end) // 2
            mine = slice(middle, end) if device >> level & 1 else slice(begin, middle)
            halved[device, mine] += before[other, mine]
            read[device] += 3 * (end - begin) / 2
            if device // devices == other // devices:
                within[device] += 2 * (end - begin) / 2  # now, and again when the halves come back
            else:
                between[device // devices] += 2 * (end - begin) / 2
            new.append((mine.start, mine.stop))
        parts = new
    for device, (begin, end) in enumerate(parts):
        assert np.array_equal(halved[device, begin:end], values.sum(0)[begin:end])
    exchange = device_update(dataclasses.replace(WORK, gradients=size), MACHINES, nodes, devices)
    assert np.allclose(between, exchange.link * MACHINES.link)
    assert np.allclose(within, exchange.inside * MACHINES.inside)
    assert np.allclose(read, exchange.memory * MACHINES.device_memory - 5 * size)
    assert exchange.messages == pytest.approx(2 * math.log2(total) * MACHINES.message)
    assert exchange.latency == pytest.approx(2 * math.log2(nodes) * MACHINES.latency)


def test_devices_that_are_no_power_of_two_pass_all_gradients_around():
    exchange = device_update(WORK, MACHINES, 3, 1)
    assert (exchange.link, exchange.inside) == (pytest.approx(2 * 0.1), 0.0)
    assert exchange.memory == pytest.approx((4 + 5) * 1e-3)
    assert device_update(WORK, MACHINES, 1, 3).inside == pytest.approx(2 * 0.1 / 20)
    assert exchange.latency + exchange.messages == pytest.approx(2 * (1e-3 + 1e-5))


def test_all_nodes_together_send_twice_the_parameters_and_no_more():
    times = [host_update(WORK, MACHINES, nodes, 1).link for nodes in (1, 2, 4, 1024, 10**6)]
    assert times == sorted(times)
    assert times[0] == 0.0
    assert times[-1] == pytest.approx(2 * 0.1, rel=1e-5)
    assert device_update(WORK, MACHINES, 2**20, 1).link == pytest.approx(2 * 0.1, rel=1e-5)


@given(
    nodes=st.integers(1, 64),
    devices=st.integers(1, 16),
    field=st.sampled_from([field.name for field in dataclasses.fields(Machines)]),
    factor=st.floats(1.0, 100.0),
)
def test_better_machines_are_never_slower(nodes, devices, field, factor):
    is_time = field in ("latency", "message")
    better = dataclasses.replace(MACHINES, **{field: getattr(MACHINES, field) * (1 / factor if is_time else factor)})
    for update in (host_update, device_update):
        assert update(WORK, better, nodes, devices).total <= update(WORK, MACHINES, nodes, devices).total * (1 + 1e-9)


def test_a_step_is_compute_and_what_of_the_exchange_does_not_hide():
    exchange = Exchange(link=0.2)
    assert step_seconds(WORK, exchange, 8) == pytest.approx(0.7)
    assert step_seconds(dataclasses.replace(WORK, hidden=0.3), exchange, 8) == pytest.approx(0.55)
    assert step_seconds(dataclasses.replace(WORK, hidden=0.9), exchange, 8) == pytest.approx(0.5)


@pytest.mark.parametrize("devices", [2, 16, 256])
def test_the_slowest_device_is_a_little_faster_than_its_bound(devices):
    work = Work(compute=1.0, examples=1, gradients=1, spread=0.05)
    slowest = np.random.default_rng(0).normal(1.0, 0.05, (4000, devices)).max(1).mean()
    assert slowest < step_seconds(work, Exchange(), devices) < slowest + 0.05
    assert step_seconds(work, Exchange(), 1) == 1.0


def test_the_curve_fills_nodes_one_after_the_other():
    points = curve(WORK, MACHINES, 3, 8)
    assert [(point.devices, point.nodes) for point in points] == [(1, 1), (2, 1), (4, 1), (8, 1), (16, 2), (24, 3)]
    assert [point.devices for point in curve(WORK, MACHINES, 32, 8, update_on="device")] == [2**k for k in range(9)]
    assert [point.devices for point in curve(WORK, MACHINES, 1, 1)] == [1]
    last = points[-1]
    assert last.exchange == host_update(WORK, MACHINES, 3, 8)
    assert last.seconds == pytest.approx(0.5 + last.exchange.total)
    assert last.rate == pytest.approx(24 * 32 / last.seconds)
    assert last.efficiency == pytest.approx(0.5 / last.seconds)


def test_ranks_of_a_node_are_no_more_than_its_devices():
    assert curve(WORK, MACHINES, 2, 4, 4)[1].exchange == host_update(WORK, MACHINES, 1, 2, 2)
