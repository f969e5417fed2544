"""A step over many devices gives what plain ``pytensor.function`` gives on the whole batch."""

from __future__ import annotations

import functools

import jax
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import PYTHON, Graph, Reference, as_list, assert_close, compare_with_pytensor, plain, states
from pytensor.compile import io

import theano_mgpu as tm
from theano_mgpu.arguments import In

BOTH = pytest.mark.parametrize("update_on", ["host", "device"])


def batch(examples: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng([examples, seed])
    return rng.standard_normal((examples, 3)).astype("float32"), rng.standard_normal((examples, 2)).astype("float32")


def momentum_graph() -> Graph:
    """A layer, its loss, and a momentum step written out; with a metric, a count, and an output for every example."""
    weight = pytensor.shared(np.random.default_rng(1).standard_normal((3, 2)).astype("float32"), name="weight")
    velocity = pytensor.shared(np.zeros((3, 2), "float32"), name="velocity")
    x, y = pt.matrix("x", dtype="float32"), pt.matrix("y", dtype="float32")
    learning_rate = pt.scalar("learning_rate", dtype="float32")
    predicted = pt.tanh(x @ weight)
    loss = ((predicted - y) ** 2).mean()
    new_velocity = np.float32(0.9) * velocity - learning_rate * tm.grad(loss, weight)
    return Graph(
        [x, y, learning_rate],
        {"loss": tm.average(loss), "count": tm.total(x.shape[0]), "predicted": predicted},
        {velocity: new_velocity, weight: weight + new_velocity},
    )


@functools.cache
def momentum_reference(*sizes: int) -> Reference:
    return plain(momentum_graph, [(*batch(size, seed), np.float32(0.1)) for seed, size in enumerate(sizes)])


@BOTH
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8])
def test_momentum_steps_equal_plain_pytensor(eight, devices, update_on):
    compare_with_pytensor(momentum_graph, momentum_reference(24, 24, 24), eight[:devices], update_on=update_on)


@BOTH
@pytest.mark.parametrize("devices", [2, 3, 8])
def test_uneven_batch_gives_full_batch_gradient(eight, devices, update_on):
    compare_with_pytensor(momentum_graph, momentum_reference(19, 19), eight[:devices], update_on=update_on)


@BOTH
def test_a_batch_of_one_example_runs_on_eight_devices(eight, update_on):
    compare_with_pytensor(momentum_graph, momentum_reference(1, 1), eight, update_on=update_on)


@BOTH
@pytest.mark.parametrize(("devices", "shards"), [(1, 5), (3, 7), (4, 2), (4, 32)])
def test_devices_take_turns_at_more_shards(eight, devices, shards, update_on):
    reference = momentum_reference(19, 19)
    compare_with_pytensor(momentum_graph, reference, eight[:devices], shards=shards, update_on=update_on)


@pytest.mark.parametrize("shards", [8, *(pytest.param(shards, marks=pytest.mark.slow) for shards in (1, 2, 16))])
def test_bits_depend_on_the_shards_and_not_on_the_devices(eight, shards):
    """Nor on where the update is applied: even batches, uneven ones, and ones smaller than the number of shards."""
    found = set()
    for devices in (1, 2, 4, 8):
        for update_on in ("host", "device"):
            graph = momentum_graph()
            options = {"contexts": eight[:devices], "shards": shards, "update_on": update_on}
            step = tm.function(graph.inputs, graph.outputs, updates=graph.updates, **options)
            results = [step(*batch(size), 0.1) for size in (32, 19, 5, 3)]
            bits = tuple(value.tobytes() for result in results for value in result.values())
            found.add((*bits, *states(*graph.updates)))
    assert len(found) == 1


@BOTH
def test_zeros_of_either_sign_have_the_same_bits_on_any_number_of_devices(eight, update_on):
    """A gradient of -0.0 alone: XLA's own sum of those is 0.0 between devices, and -0.0 on one."""
    found = set()
    for devices in (1, 2, 4):
        weight = pytensor.shared(np.zeros(3, "float32"), name="weight")
        x = pt.matrix("x", dtype="float32")
        step = tm.function(
            [x], updates={weight: tm.average(x.mean(0))}, contexts=eight[:devices], shards=4, update_on=update_on
        )
        step(np.full((8, 3), -0.0, "float32"))
        found.add(states(weight)[0])
    assert len(found) == 1


def test_float64_and_float32_graphs_run_side_by_side(eight):
    """Each in its own precision, alternating in one process."""
    steps = {}
    for dtype in ("float32", "float64"):
        x, total = pt.matrix("x", dtype=dtype), pytensor.shared(np.zeros(3, dtype), name="total")
        function = tm.function([x], tm.average(x.mean()), updates={total: total + tm.total(x.sum(0))}, contexts=eight)
        steps[dtype] = function, total
    values = np.random.default_rng(0).standard_normal((16, 3)) + 1e3
    for _ in range(2):
        for dtype, (step, total) in steps.items():
            mean = step(values.astype(dtype))
            assert (mean.dtype, total.get_value().dtype) == (dtype, dtype)
    double = values.sum(0) * 2
    np.testing.assert_allclose(steps["float64"][1].get_value(), double, rtol=1e-14)
    np.testing.assert_allclose(steps["float32"][1].get_value(), double, rtol=1e-6)
    assert not jax.config.jax_enable_x64


# Inputs


@BOTH
def test_broadcast_inputs_go_whole_to_every_device(eight, update_on):
    def build() -> Graph:
        x, mask = pt.matrix("x", dtype="float32"), pt.vector("mask", dtype="float32")
        mean = pytensor.shared(np.zeros(3, "float32"), name="mean")
        masked = x * mask
        updates = {mean: mean * mask + tm.average(masked.mean(0))}
        return Graph([x, mask], [masked, mask * 2], updates, options={"broadcast": [mask]})

    mask = np.array([1, 0, 2], "float32")
    compare_with_pytensor(build, [(batch(11)[0], mask), (batch(8)[0], mask + 1)], eight[:4], update_on=update_on)


def test_a_vector_is_split_unless_broadcast(eight):
    x, labels = pt.matrix("x", dtype="float32"), pt.ivector("labels")
    function = tm.function([x, labels], [x.sum(1) * labels], contexts=eight[:4])
    (result,) = function(np.ones((6, 3), "float32"), np.arange(6, dtype="int32"))
    np.testing.assert_array_equal(result, 3.0 * np.arange(6))


def test_defaults_names_and_positions_call_as_in_pytensor(eight):
    x = pt.matrix("x", dtype="float32")
    scale, shift = pt.scalar("scale", dtype="float32"), pt.scalar(dtype="float32")
    inputs = [x, In(scale, value=2.0), In(shift, value=1.0, name="offset")]
    function = tm.function(inputs, x * scale + shift, contexts=eight[:2])
    values = batch(5)[0]
    for result, expected in [
        (function(values), values * 2 + 1),
        (function(values, 3.0), values * 3 + 1),
        (function(x=values, scale=4.0), values * 4 + 1),
        (function(values, offset=0.0), values * 2),
        (function(values), values * 2 + 1),  # a default is not used up
    ]:
        assert_close(result, expected)


def test_a_default_may_be_a_batch(eight):
    x = pt.matrix("x", dtype="float32")
    values = batch(5)[0]
    function = tm.function([In(x, value=values)], tm.average(x.mean()), contexts=eight[:2])
    assert_close(function(), np.asarray(values.mean()))


@pytest.mark.parametrize(
    "given",
    [
        pytest.param(lambda x: np.asfortranarray(x), id="column-major"),
        pytest.param(lambda x: np.repeat(x, 2, axis=1)[::-1, ::2][::-1], id="strided"),
        pytest.param(lambda x: x.astype(">f4"), id="byte-swapped"),
        pytest.param(lambda x: x.tolist(), id="nested lists"),
        pytest.param(lambda x: np.round(x).astype("int8"), id="int8"),
        pytest.param(lambda x: np.frombuffer(x.tobytes(), "float32").reshape(x.shape), id="read-only"),
    ],
)
def test_arrays_of_any_layout_are_taken_as_pytensor_takes_them(eight, given):
    x = pt.matrix("x", dtype="float32")
    value = given(batch(6)[0])
    options = {"allow_input_downcast": True}  # Python's floats are float64
    expected = pytensor.function([x], x * 2, mode=PYTHON, **options)(value)
    assert_close(tm.function([x], x * 2, contexts=eight[:2], **options)(value), expected)


def test_downcast_is_allowed_where_asked_for(eight):
    x, y = pt.matrix("x", dtype="float32"), pt.matrix("y", dtype="float32")
    double = batch(4)[0].astype("float64")
    assert_close(
        tm.function([x], x * 2, contexts=eight[:2], allow_input_downcast=True)(double), double.astype("float32") * 2
    )
    function = tm.function([io.In(x, allow_downcast=True), y], x + y, contexts=eight[:2])
    assert_close(function(double, double.astype("float32")), double.astype("float32") * 2)


def test_a_shared_default_is_read_at_every_call(eight):
    """As in PyTensor: the input stands for the shared variable."""
    x, y, scale = pt.matrix("x", dtype="float32"), pt.matrix("y", dtype="float32"), pt.scalar("scale", dtype="float32")
    stored = pytensor.shared(np.float32(2), name="stored")
    inputs = [x, io.In(scale, value=stored), y]
    function = tm.function(inputs, x * scale + y, contexts=eight[:2])
    reference = pytensor.function(inputs, x * scale + y, mode=PYTHON)
    values = batch(5)[0]
    for value in (2, 5):
        stored.set_value(np.float32(value))
        assert_close(function(values, y=values), reference(values, y=values))


def test_plain_functions_take_plain_defaults_too():
    x, scale = pt.matrix("x", dtype="float32"), pt.scalar("scale", dtype="float32")
    values = batch(5)[0]
    assert_close(pytensor.function([x, In(scale, value=2.0)], x * scale, mode=PYTHON)(values), values * 2)


def test_a_batch_of_another_size_at_every_call(eight):
    """Each new size of shard is compiled once; going back to an old one is no matter."""
    compare_with_pytensor(momentum_graph, momentum_reference(8, 5, 8, 16, 5), eight[:4])


def test_a_step_without_a_batch_runs_once(contexts):
    def build() -> Graph:
        weight = pytensor.shared(np.arange(6, dtype="float32").reshape(2, 3), name="weight")
        scale = pt.scalar("scale", dtype="float32")
        loss = ((weight * scale) ** 2).sum()
        return Graph([scale], [tm.average(loss), weight], {weight: weight - scale * tm.grad(loss, weight)})

    compare_with_pytensor(build, [(np.float32(0.1),), (np.float32(0.2),)], contexts)


# Outputs, updates, givens


@pytest.mark.parametrize(
    ("form", "kind"),
    [
        (lambda mean: mean, np.ndarray),
        (lambda mean: [mean], list),
        (lambda mean: (mean,), list),
        (lambda mean: {"mean": mean}, dict),
        (lambda mean: None, type(None)),
    ],
    ids=["variable", "list", "tuple", "dict", "none"],
)
def test_outputs_come_in_the_form_they_were_asked_for(eight, form, kind):
    x, count = pt.matrix("x", dtype="float32"), pytensor.shared(np.int64(0), name="count")
    mean = tm.average(x.mean())
    function = tm.function([x], form(mean), updates=[(count, count + tm.total(x.shape[0]))], contexts=eight[:2])
    values = batch(6)[0]
    result = function(values)
    assert type(result) is kind
    if isinstance(result, dict):
        assert list(result) == ["mean"]
    for value in as_list(result):
        assert_close(value, np.asarray(values.mean()))
    assert count.get_value() == 6


def test_examples_come_back_in_order(contexts):
    """Also where shards have two sizes, take turns, and an output is asked for twice."""
    x = pt.ivector("x")
    function = tm.function([x], [x, x * 10, x, tm.total(x.sum())], contexts=contexts, shards=5)
    for examples in (1, 4, 13, 23):
        values = np.arange(examples, dtype="int32")
        same, tenfold, again, total = function(values)
        np.testing.assert_array_equal(same, values)
        np.testing.assert_array_equal(tenfold, values * 10)
        np.testing.assert_array_equal(again, values)
        assert total == values.sum()


def test_results_belong_to_the_caller(eight):
    """Writing into what a call gave changes neither parameters nor later results."""
    weight = pytensor.shared(np.ones(3, "float32"), name="weight")
    x = pt.matrix("x", dtype="float32")
    function = tm.function([x], [weight, x, tm.average(x.mean())], contexts=eight[:1])
    values = batch(4)[0]
    kept = values.copy()
    for result in function(values):
        result[...] = -1
    np.testing.assert_array_equal(values, kept)
    np.testing.assert_array_equal(weight.get_value(), np.ones(3))
    np.testing.assert_array_equal(function(values)[0], np.ones(3))


@BOTH
def test_old_values_stand_on_every_right_hand_side(eight, update_on):
    def build() -> Graph:
        a, b = (pytensor.shared(np.full(3, value, "float32"), name=name) for name, value in (("a", 1), ("b", 2)))
        x = pt.matrix("x", dtype="float32")
        return Graph([x], [a, a + b], [(a, b), (b, a + tm.average(x.mean(0)))], watched=[a, b])

    compare_with_pytensor(build, [(batch(6)[0],), (batch(7)[0],)], eight[:4], update_on=update_on)


@BOTH
def test_givens_replace_before_the_cut(eight, update_on):
    def build() -> Graph:
        data = pytensor.shared(np.random.default_rng(0).standard_normal((20, 3)).astype("float32"), name="data")
        mean = pytensor.shared(np.zeros(3, "float32"), name="mean")
        x, index, scale = pt.matrix("x", dtype="float32"), pt.ivector("index"), pt.scalar("scale", dtype="float32")
        outputs = [x.sum(1), tm.average((x * scale).mean())]
        givens = {x: data[index], scale: np.float32(3)}
        return Graph([index], outputs, {mean: tm.average(x.mean(0))}, givens)

    indices = np.array([3, 1, 19, 0, 7, 7], "int32")
    compare_with_pytensor(build, [(indices,), (indices[:5],)], eight[:4], update_on=update_on)


def test_a_shared_variable_may_be_given_for_another(eight):
    x = pt.matrix("x", dtype="float32")
    trained, averaged = (pytensor.shared(np.full(3, v, "float32"), name=str(v)) for v in (1, 5))
    function = tm.function([x], x * trained, givens=[(trained, averaged)], contexts=eight[:2])
    assert_close(function(np.ones((4, 3), "float32")), np.full((4, 3), 5, "float32"))
    assert function.get_shared() == [averaged]


@BOTH
def test_totals_add_and_their_gradients_too(eight, update_on):
    def build() -> Graph:
        weight = pytensor.shared(np.array([0.3, -0.2, 0.5], "float32"), name="weight")
        x = pt.matrix("x", dtype="float32")
        loss = tm.total(pt.exp(x @ weight).sum())
        return Graph([x], [loss], {weight: weight - np.float32(0.01) * tm.grad(loss, weight)})

    compare_with_pytensor(build, [(batch(11)[0],), (batch(8)[0],)], eight[:4], update_on=update_on)


@BOTH
@pytest.mark.parametrize("devices", [1, 3])
def test_the_largest_and_smallest_of_a_batch(eight, devices, update_on):
    """As outputs, in an update, of uneven batches; with a gradient through them, of one that all devices share."""

    def build(extremum: bool = False) -> Graph:
        weight = pytensor.shared(np.array([0.3, -0.2, 0.5], "float32"), name="weight")
        seen = pytensor.shared(np.zeros(3, "float32"), name="seen")
        x = pt.matrix("x", dtype="float32")
        outputs = [tm.maximum((x @ weight).max()), tm.minimum(pt.argmax(x, axis=1).min())]
        loss = tm.maximum(pt.exp(x @ weight).max()) if extremum else pt.exp(x @ weight).mean()
        gradient = tm.grad(loss, weight)
        updates = {weight: weight - np.float32(0.1) * gradient, seen: pt.minimum(seen, tm.minimum(x.min(0)))}
        return Graph([x], outputs, updates)

    batches = [(batch(size)[0],) for size in (12, 7, 2)]
    compare_with_pytensor(build, batches, eight[:devices], update_on=update_on)
    compare_with_pytensor(lambda: build(True), batches[:1], eight[:devices], update_on=update_on)


@BOTH
@pytest.mark.parametrize("devices", [1, 4])
def test_an_average_needed_below_the_cut_is_taken_between_the_devices(eight, devices, update_on):
    """Synchronised normalisation: the statistics of the whole batch, forward and backward."""

    def build() -> Graph:
        weight = pytensor.shared(np.array([0.3, -0.2, 0.5], "float32"), name="weight")
        x = pt.matrix("x", dtype="float32")
        hidden = x * weight
        centred = hidden - tm.average(hidden.mean(0))
        normalised = centred / pt.sqrt(tm.average((centred**2).mean(0)) + np.float32(1e-2))
        loss = (pt.tanh(normalised * x) ** 2).mean()
        outputs = [tm.average(loss), normalised]
        return Graph([x], outputs, {weight: weight - np.float32(0.1) * tm.grad(loss, weight)})

    batches = [(batch(examples)[0],) for examples in (16, 13, 3)]  # also uneven, and smaller than the devices
    compare_with_pytensor(build, batches, eight[:devices], update_on=update_on)


# Non-finite updates


@BOTH
def test_a_non_finite_step_is_skipped_and_counted_or_applied(eight, update_on):
    x = pt.matrix("x", dtype="float32")
    good, bad = np.ones((4, 3), "float32"), np.full((4, 3), np.nan, "float32")
    for nonfinite, after in (("skip", 1.0), ("ignore", np.nan)):
        mean = pytensor.shared(np.zeros(3, "float32"), name="mean")
        options = {"contexts": eight[:2], "nonfinite": nonfinite, "update_on": update_on}
        function = tm.function([x], tm.average(x.mean()), updates={mean: tm.average(x.mean(0))}, **options)
        function(good)
        assert np.isnan(function(bad))
        np.testing.assert_array_equal(mean.get_value(), np.full(3, after, "float32"))
        assert function.skipped == (nonfinite == "skip")
        function(good * 2)
        np.testing.assert_array_equal(mean.get_value(), np.full(3, 2, "float32"))


@BOTH
def test_skipped_steps_are_counted_among_named_outputs(eight, update_on):
    x = pt.vector("x", dtype="float32")
    mean = pytensor.shared(np.float32(0), name="mean")
    options = {"contexts": eight[:2], "nonfinite": "skip", "update_on": update_on}
    step = tm.function([x], {"mean": tm.average(x.mean())}, updates={mean: tm.average(x.mean())}, **options)
    counts = [step(np.full(4, value, "float32"))["skipped"] for value in (1, np.inf, 2, np.nan)]
    assert counts == [0, 1, 1, 2]
    assert mean.get_value() == 2


@BOTH
def test_a_skipped_step_advances_nothing(eight, update_on):
    """Neither a generator, nor a velocity, nor a count: what follows is as if it had not been."""
    found = []
    for batches in ((1.0, 2.0, 3.0), (1.0, np.nan, 2.0, np.inf, np.nan, 3.0)):
        x = pt.vector("x", dtype="float32")
        rng = pytensor.shared(np.random.default_rng(5), name="rng")
        weight = pytensor.shared(np.float32(0), name="weight")
        count = pytensor.shared(np.int64(0), name="count")
        next_rng, noise = rng.normal(size=x.shape)
        loss = ((weight - x * (1 + noise)) ** 2).mean()
        updates = tm.updates.momentum(tm.grad(loss, [weight]), [weight], learning_rate=0.1)
        updates |= {rng: next_rng, count: count + 1}
        options = {"contexts": eight[:2], "nonfinite": "skip", "update_on": update_on}
        step = tm.function([x], tm.average(loss), updates=updates, **options)
        losses = []
        for value in batches:
            before = rng.get_value().bit_generator.state
            skipped = step.skipped
            loss = float(step(np.full(4, value, "float32")))
            assert (rng.get_value().bit_generator.state == before) == (not np.isfinite(value))
            if step.skipped == skipped:
                losses.append(loss)
        values = [variable.get_value().tobytes() for variable in updates if variable is not rng]
        found.append((losses, values, rng.get_value().bit_generator.state))
    assert len(found[0][0]) == 3
    assert found[0] == found[1]


# The step itself


def test_a_step_shows_itself(eight, capsys):
    graph = momentum_graph()
    velocity, weight = graph.updates
    step = tm.function(graph.inputs, graph.outputs, updates=graph.updates, contexts=eight[:4], name="train")
    assert step.name == "train"
    assert "train" in repr(step)
    assert set(step.get_shared()) == {weight, velocity}
    assert "weight" in str(step.cut)
    step.dprint()
    assert "Tanh" in capsys.readouterr().out


def test_contexts_may_be_given_by_their_names(eight):
    x = pt.matrix("x", dtype="float32")
    step = tm.function([x], tm.average(x.mean()), contexts="first->cpu2;second->cpu5")
    assert step.contexts.devices == [eight[2].device, eight[5].device]
    assert_close(step(np.ones((3, 3), "float32")), np.asarray(1, "float32"))


def test_every_device_is_used_by_default(eight):
    x = pt.matrix("x", dtype="float32")
    step = tm.function([x], tm.average(x.mean()))
    assert (step.contexts.devices, step.shards) == (eight.devices, 8)


def test_two_steps_share_their_variables(eight):
    """Training and evaluation on the same parameters, each on devices of its own."""
    graph = momentum_graph()
    train = tm.function(graph.inputs, graph.outputs, updates=graph.updates, contexts=eight[:4], update_on="device")
    evaluate = tm.function(graph.inputs, graph.outputs, contexts=eight[4:6], on_unused_input="ignore")
    reference = momentum_reference(24, 24, 24)
    for values, outputs in zip(reference.batches, reference.outputs, strict=True):
        assert_close(evaluate(*values)["predicted"], outputs[2])
        train(*values)


# Batches sent ahead


@BOTH
@pytest.mark.parametrize(("devices", "shards"), [(1, 4), (4, 8)])
def test_a_batch_that_was_put_gives_the_same_bits(eight, devices, shards, update_on):
    """In any order of putting and stepping, and though the caller's arrays are written anew in the meantime."""
    found = []
    for put in (False, True):
        graph = momentum_graph()
        options = {"contexts": eight[:devices], "shards": shards, "update_on": update_on}
        step = tm.function(graph.inputs, graph.outputs, updates=graph.updates, **options)
        batches = [(*batch(size, size), 0.1) for size in (16, 11)]
        if put:
            sent = [step.put(*batches[0]), step.put(x=batches[1][0], y=batches[1][1], learning_rate=0.1)]
            for x, y, _ in batches:
                x[:], y[:] = 0, 0
            results = [step(one) for one in sent]
        else:
            results = [step(*one) for one in batches]
        found.append((*(value.tobytes() for result in results for value in result.values()), *states(*graph.updates)))
    assert found[0] == found[1]


def test_a_put_batch_moves_nothing_more_when_the_step_runs(eight, monkeypatch):
    x = pt.matrix("x", dtype="float32")
    step = tm.function([x], tm.average(x.mean()), contexts=eight[:4], shards=8)
    sent = step.put(batch(16)[0])
    monkeypatch.setattr("theano_mgpu.split._on_each", None)
    assert step(sent) == pytest.approx(batch(16)[0].mean(), rel=1e-5)


def test_a_put_batch_is_of_one_step_and_alone(eight):
    x, y = pt.vector("x", dtype="float32"), pt.vector("y", dtype="float32")
    one, other = (tm.function([x, y], tm.average((x * y).mean()), contexts=eight[:2], name=n) for n in ("a", "b"))
    sent = one.put(np.ones(4, "float32"), np.ones(4, "float32"))
    for call in (lambda: other(sent), lambda: one(sent, np.ones(4, "float32")), lambda: one(sent, y=sent)):
        with pytest.raises(TypeError, match=r"only argument, and of the step that put it: [ab]\([ab]\.put\(\.\.\.\)\)"):
            call()
    with pytest.raises(ValueError, match=r"a\(\): 'y' has 3 examples but 'x' has 4"):
        one.put(np.ones(4, "float32"), np.ones(3, "float32"))
