"""Memory planned before anything runs, and what a step does where it does not suffice."""

from __future__ import annotations

import subprocess
import sys
import textwrap

import jax
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import assert_close, states

import theano_mgpu as tm
from theano_mgpu.devices import Contexts
from theano_mgpu.plan import held_gradients

SIZE = 24


def limited(contexts: Contexts, memory: int | None) -> Contexts:
    return Contexts([tm.Context(c.name, c.device, memory) for c in contexts])


class Network:
    """Convolutions without batch norm, so that its gradient does not depend on the shards but by rounding."""

    def __init__(self, contexts: Contexts, **options) -> None:
        self.store = tm.ParameterStore(seed=0)
        images = pt.tensor("images", shape=(None, SIZE, SIZE, 3), dtype="float32")
        labels = pt.vector("labels", dtype="int32")
        x = images
        for i in range(2):
            x = pt.tanh(tm.layers.conv2d(self.store, f"conv{i}", x, 16, 3, padding=1))
        logits = tm.layers.dense(self.store, "fc", tm.nn.global_avg_pool2d(x), 10)
        loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
        params = self.store.trainable()
        updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.1, momentum=0.9)
        self.step = tm.function(
            [images, labels], {"loss": tm.average(loss)}, updates=updates, contexts=contexts, name="train", **options
        )

    def train(self, examples: int, steps: int = 1) -> None:
        for i in range(steps):
            rng = np.random.default_rng(i)
            images = rng.standard_normal((examples, SIZE, SIZE, 3)).astype("float32")
            self.step(images, rng.integers(0, 10, examples, dtype="int32"))


@pytest.fixture(scope="module")
def need(eight):
    """Bytes that each of two devices needs for shards of 16 and of 8 examples, in one round and in two."""
    step = Network(eight[:2]).step
    return {size: step.plan(2 * size).device.total for size in (16, 8, 4)}


@pytest.fixture
def compiled(monkeypatch):
    """XLA's account of every program that is compiled."""
    found = []
    original = jax.stages.Lowered.compile

    def compile_and_note(self, *args, **kwargs):
        program = original(self, *args, **kwargs)
        found.append(program.memory_analysis())
        return program

    monkeypatch.setattr(jax.stages.Lowered, "compile", compile_and_note)
    return found


@pytest.mark.parametrize("update_on", ["host", "device"])
def test_a_plan_agrees_with_xlas_own_accounting(eight, compiled, update_on):
    network = Network(eight[:2], update_on=update_on)
    before = network.store.checksum()
    plan = network.step.plan(16)
    assert (plan.shards, plan.shard_size, plan.rounds) == (2, 8, 1)
    parameters = sum(v.get_value().nbytes for v in network.step.cut.device.shared)
    device = plan.device

    def agree(memory):
        pairs = (
            (parameters + device.inputs, memory.argument_size_in_bytes),
            (device.gradients, memory.output_size_in_bytes),
            (device.activations, memory.temp_size_in_bytes),
        )
        return all(planned == pytest.approx(by_xla, rel=0.1) for planned, by_xla in pairs)

    assert sum(map(agree, compiled)) == 1
    assert device.parameters == pytest.approx(parameters * (1 if update_on == "host" else 2), rel=0.1)
    # Forward, and the gradients by the filters of both convolutions and by the images of one.
    by_hand = 2 * 16 * SIZE**2 * 9 * (16 * 3 * 2 + 16 * 16 * 3)
    assert plan.flops == pytest.approx(by_hand, rel=0.15)
    assert network.store.checksum() == before


def test_planning_compiles_what_then_runs(eight, compiled):
    network = Network(eight[:2])
    network.step.plan(32)
    assert compiled
    compiled.clear()
    network.train(32)
    assert not compiled


@pytest.mark.slow
def test_more_shards_need_less_for_activations_and_more_for_gradients(eight):
    plans = [Network(eight[:2], shards=shards).step.plan(64) for shards in (2, 8)]
    few, many = (plan.device for plan in plans)
    assert many.activations < 0.3 * few.activations
    assert many.gradients > few.gradients
    assert [plan.rounds for plan in plans] == [1, 4]
    assert plans[0].flops == pytest.approx(plans[1].flops, rel=0.02)


@pytest.mark.parametrize(("rounds", "held"), [(1, 1), (2, 2), (3, 3), (4, 3), (8, 4), (32, 6)])
def test_gradients_that_are_there_at_a_time(rounds, held):
    assert held_gradients(rounds, ahead=1) == held


def test_the_largest_shard_fits_and_a_larger_one_does_not(eight, need):
    limit = (need[16] + need[8]) // 2
    step = Network(limited(eight[:2], limit)).step
    largest = step.plan(32).largest_shard
    assert 8 <= largest < 16
    assert step.plan(2 * largest).fits
    assert not step.plan(2 * largest + 2).fits
    assert step.plan(32).limit == limit


def test_auto_takes_the_smallest_power_of_two_that_fits(eight, need):
    roomy, tight = (limited(eight[:2], memory) for memory in (2 * need[16], int(1.2 * need[8])))
    assert Network(roomy, shards="auto").step.plan(32).shards == 2
    network = Network(tight, shards="auto")
    plan = network.step.plan(64)
    assert plan.fits
    assert plan.shards in (8, 16)
    assert not Network(tight, shards=plan.shards // 2).step.plan(64).fits
    network.train(64)
    assert network.step.shards == plan.shards
    network.train(9)
    assert network.step.shards == 2


def test_without_a_limit_auto_takes_a_shard_a_device(eight):
    assert Network(eight[:4], shards="auto").step.shards == 4
    assert Network(eight[:3], shards="auto").step.shards == 4


@pytest.mark.parametrize("update_on", ["host", "device"])
def test_where_memory_runs_out_the_step_says_so_once_and_goes_on(eight, need, update_on):
    """The gradient is the same; so are the bits of the same step with as many shards from the start."""
    tight = limited(eight[:2], int(1.2 * need[8]))
    network = Network(tight, update_on=update_on)
    with pytest.warns(
        RuntimeWarning, match=r"train\(\): out of memory with 2 shards of at most 32 examples: .*"
    ) as said:
        network.train(64, steps=3)
    assert len(said) == 1
    assert network.step.shards in (8, 16)
    assert str(said[0].message).endswith(
        f"went on with {network.step.shards}. So begin with shards={network.step.shards}."
    )
    assert said[0].filename == __file__
    from_the_start = Network(eight[:2], shards=network.step.shards, update_on=update_on)
    from_the_start.train(64, steps=3)
    assert network.store.checksum() == from_the_start.store.checksum()
    roomy = Network(eight[:2], update_on=update_on)
    roomy.train(64, steps=3)
    for name, value in roomy.store.get_values().items():
        assert_close(network.store[name].get_value(), value, tolerance=1e-4)


@pytest.mark.parametrize("shards", [None, "auto", 4])
def test_a_limit_that_not_even_one_example_fits_is_an_error_that_changes_nothing(eight, shards):
    network = Network(limited(eight[:2], 10_000), shards=shards)
    before = states(*network.step.get_shared())
    with pytest.raises(
        tm.DeviceMemoryError, match=r"train\(\): .*one example.* is 10\.0 kB\. No parameter was changed"
    ) as e:
        network.train(8)
    assert isinstance(e.value, MemoryError)
    assert states(*network.step.get_shared()) == before


def test_shards_that_need_each_other_cannot_be_cut_finer(eight):
    x = pt.matrix("x", shape=(None, 64), dtype="float32")
    weight = pytensor.shared(np.ones(64, "float32"), "weight")
    loss = ((x * weight - tm.average((x * weight).mean(0))) ** 2).mean()
    contexts = limited(eight[:2], 1000)
    step = tm.function([x], updates={weight: weight - tm.grad(loss, weight)}, contexts=contexts, name="train")
    with pytest.raises(tm.DeviceMemoryError, match=r"train\(\): .*synchronised.* cannot take turns: .*is 1\.0 kB\."):
        step(np.ones((64, 64), "float32"))


def test_unknown_shapes_are_given_by_name(eight):
    x = pt.tensor("x", shape=(None, None, 3), dtype="float32")
    table = pt.matrix("table", dtype="float32")
    y = (x @ table).sum(axis=(1, 2))
    step = tm.function([x, table], tm.average(y.mean()), contexts=eight[:2], broadcast=[table])
    with pytest.raises(
        ValueError, match=r"plan\(\): the shape of one example of 'x' is \(\?, 3\)\. Give .*plan\(4, x="
    ):
        step.plan(4)
    with pytest.raises(ValueError, match=r"the input of 'table' is \(\?, \?\)"):
        step.plan(4, x=(5, 3))
    with pytest.raises(ValueError, match=r"'x' is \(\?, 3\); \(5, 4\) was given"):
        step.plan(4, x=(5, 4), table=(3, 2))
    with pytest.raises(TypeError, match=r"no input is named 'y'; there are 'x', 'table'"):
        step.plan(4, y=(3,))
    for wrong in (0, 2.5, "8"):
        with pytest.raises(ValueError, match="batch_size: expected a whole number"):
            step.plan(wrong)
    assert step.plan(4, x=(5, 3), table=(3, 2)).device.inputs < step.plan(4, x=(50, 3), table=(3, 2)).device.inputs


def test_a_plan_prints_as_a_table(eight):
    text = str(Network(limited(eight[:2], 10**9), shards=8).step.plan(64))
    assert text.startswith("64 examples as 8 shards of at most 8 in 4 rounds on cpu0, cpu1\n")
    assert "  limit           1.0 GB  fits; largest shard" in text
    assert "GFLOP a step" in text


PROCESS = """
    import ctypes, gc
    import numpy as np, pytensor.tensor as pt
    import theano_mgpu as tm

    def status(name):
        with open("/proc/self/status") as lines:
            return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(name))

    contexts = tm.contexts("cpu:2")
    store = tm.ParameterStore(seed=0)
    images, labels = pt.tensor("images", shape=(None, 64, 64, 3), dtype="uint8"), pt.ivector("labels")
    logits = tm.models.resnet(store, images, depth=18, num_classes=10, train=True)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.1) | store.updates()
    step = tm.function([images, labels], tm.average(loss), updates=updates, contexts=contexts)
    plan = step.plan(96)
    batch = np.zeros((96, 64, 64, 3), "uint8"), np.zeros(96, "int32")
    step(*batch)
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    before = status("VmRSS")
    with open("/proc/self/clear_refs", "w") as peak:
        peak.write("5")  # begin to look for the highest anew
    step(*batch)
    print((status("VmHWM") - before) / (plan.total - plan.host.parameters))
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_process_uses_what_was_planned():
    """Within a tenth: what the second step takes on top of what is there between steps."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(PROCESS)], capture_output=True, text=True, timeout=300, check=True
    )
    assert float(run.stdout) == pytest.approx(1, abs=0.1)


RUNS_OUT = """
    import resource, warnings
    import numpy as np, pytensor, pytensor.tensor as pt
    import theano_mgpu as tm

    x = pt.matrix("x", shape=(None, 64), dtype="float32")
    w = pytensor.shared(np.full((64, 4096), 0.01, "float32"), "w")
    hidden = pt.tanh(x @ w)
    loss = (pt.tanh(hidden * 2) * pt.exp(-hidden * hidden)).mean()
    step = tm.function([x], updates={w: w - tm.grad(loss, w)}, contexts=tm.contexts("cpu:2"), name="train")
    step(np.ones((64, 64), "float32"))
    with open("/proc/self/status") as lines:
        used = next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmSize"))
    needed = 2 * step.plan(2**15).device.activations
    resource.setrlimit(resource.RLIMIT_AS, (used + needed // 2,) * 2)
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        step(np.ones((2**15, 64), "float32"))
    print(step.shards, len(said), said[0].message)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_a_step_goes_on_where_the_machine_has_not_the_memory():
    """Of a process that may have half of what one round needs."""
    run = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(RUNS_OUT)], capture_output=True, text=True, timeout=300, check=False
    )
    assert run.returncode == 0, run.stderr
    shards, count, message = run.stdout.split(maxsplit=2)
    assert (int(shards) in (4, 8), int(count)) == (True, 1)
    assert message.startswith("train(): out of memory with 2 shards of at most 16384 examples: RESOURCE_EXHAUSTED")
