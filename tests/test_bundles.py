"""Alike updates as vectors: what is bundled, the same numbers, and shared variables as in PyTensor all the same."""

from __future__ import annotations

import warnings
from collections.abc import Callable

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import PYTHON, Graph, assert_close, compare_with_pytensor
from pytensor.compile.mode import Mode

import theano_mgpu as tm
from theano_mgpu.vectors import Values, Vector, slots_of

PLACES = pytest.mark.parametrize(
    ("devices", "update_on"), [(1, "host"), (4, "device"), pytest.param(4, "host", marks=pytest.mark.slow)]
)
SHAPES = [(6, 5), (5,), (5, 1, 7), (7,), (3, 5)]
DATA = np.random.default_rng(0).standard_normal((8, 6)).astype("float32")


def weights(dtype: str = "float32") -> list:
    """Of several shapes, so that their parts of a vector have gaps between them."""
    rng = np.random.default_rng(1)
    return [
        pytensor.shared(rng.standard_normal(shape).astype(dtype), name=f"w{i}", shape=shape)
        for i, shape in enumerate(SHAPES)
    ]


def loss_of(x, params) -> pt.TensorVariable:
    """Every weight has a gradient of its own, other for each example."""
    first = pt.tanh(x @ params[0])
    return sum((first.sum(1) * (param**2).sum() * np.float32(0.01 * (i + 1))).mean() for i, param in enumerate(params))


def training(rule: Callable, dtype: str = "float32") -> Callable[[], Graph]:
    def build() -> Graph:
        x, params = pt.matrix("x", dtype=dtype), weights(dtype)
        loss = loss_of(x, params)
        return Graph([x], tm.average(loss), rule(tm.grad(loss, params), params, loss))

    return build


def zeros_like(params, name: str) -> list:
    return [pytensor.shared(np.zeros_like(p.get_value()), name=f"{name} {p.name}", shape=p.type.shape) for p in params]


def swap(gradients, params, loss) -> dict:
    """Old values stand on every right-hand side."""
    others = zeros_like(params, "other")
    return {
        **dict(zip(params, others, strict=True)),
        **{o: p - g for o, p, g in zip(others, params, gradients, strict=True)},
    }


def gradients_kept(gradients, params, loss) -> dict:
    """New values that are averages, and are read by no update."""
    kept = zeros_like(params, "kept")
    return dict(zip(kept, gradients, strict=True))


def clipped_and_averaged(gradients, params, loss) -> dict:
    clipped = tm.updates.clip_by_global_norm(gradients, 0.1)
    return tm.updates.ema(tm.updates.adamw(clipped, params, 0.01, weight_decay=0.1), params, 0.9)


RULES = {
    "momentum": lambda g, p, loss: tm.updates.momentum(g, p, 0.1),
    "two rules": lambda g, p, loss: tm.updates.nesterov(g[:2], p[:2], 0.1) | tm.updates.rmsprop(g[2:], p[2:], 0.01),
    "adam": lambda g, p, loss: tm.updates.adam(g, p, 0.01),
    "norms of each": lambda g, p, loss: tm.updates.lars(g, p, 0.1),
    "a number of the batch": lambda g, p, loss: tm.updates.sgd(g, p, tm.average(loss) * np.float32(0.01)),
    "clipped and averaged": clipped_and_averaged,
    "swap": swap,
    "gradients kept": gradients_kept,
}


@pytest.mark.parametrize(
    ("rule", "devices", "update_on"),
    [*((rule, 4, "host") for rule in RULES), ("clipped and averaged", 4, "device"), ("swap", 1, "host")],
)
def test_the_numbers_are_plain_pytensors(eight, rule, devices, update_on):
    step = compare_with_pytensor(training(RULES[rule]), [(DATA,)] * 3, eight[:devices], update_on=update_on)
    assert bool(step._assembly.bundled.bundles) == (rule != "norms of each")


def test_float64_beside_float32(eight):
    def build() -> Graph:
        narrow, wide = training(RULES["momentum"])(), training(RULES["momentum"], "float64")()
        narrow.inputs[0].name = "narrow"
        return Graph(narrow.inputs + wide.inputs, [narrow.outputs, wide.outputs], {**narrow.updates, **wide.updates})

    step = compare_with_pytensor(build, [(DATA, DATA.astype("float64"))] * 2, eight[:2])
    assert [bundle.rows[0][0].dtype for bundle in step._assembly.bundled.bundles] == ["float32", "float64"]


def test_one_rule_is_lowered_once_for_all_of_resnet(eight):
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, 32, 32, 3), dtype="float32")
    logits = tm.models.resnet(store, images, depth=20, num_classes=10, train=True, stem="cifar")
    loss = (logits**2).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, 0.1) | store.updates()
    bundled = tm.function([images], updates=updates, contexts=eight[:1])._assembly.bundled
    # Parameters with their velocities, and batch norm's moving averages.
    assert [len(bundle.rule.outputs) for bundle in bundled.bundles] == [2, 1]
    assert bundled.single == ()
    assert {v for bundle in bundled.bundles for row in bundle.rows for vector in row for v in vector} >= set(updates)


def trained(eight, devices: int, update_on: str, **options) -> tuple:
    """A step, its weights, and their reference: PyTensor's step on weights of its own."""
    graph, reference = training(RULES["momentum"])(), training(RULES["momentum"])()
    step = tm.function(graph.inputs, updates=graph.updates, contexts=eight[:devices], update_on=update_on, **options)
    plain = pytensor.function(reference.inputs, updates=reference.updates, mode=PYTHON)
    return step, list(graph.updates), plain, list(reference.updates)


def assert_alike(ours, references) -> None:
    for variable, reference in zip(ours, references, strict=True):
        assert_close(variable.get_value(), reference.get_value())


@pytest.mark.parametrize(
    ("devices", "update_on", "linker"),
    [(1, "host", "py"), (4, "host", "cvm"), (1, "device", "numba"), (4, "device", "py")],
)
def test_a_plain_function_between_two_steps_may_write_into_its_part(eight, devices, update_on, linker):
    step, ours, plain, references = trained(eight, devices, update_on)
    for variables, function in ((ours, step), (references, plain)):
        function(DATA)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            decay = pytensor.function(
                [],
                updates={variables[1]: variables[1] * np.float32(0.5)},
                mode=Mode(linker=linker, optimizer="fast_run"),
            )
        for _ in range(2):
            decay()
            function(DATA)
    assert_alike(ours, references)


@PLACES
def test_a_value_set_between_two_steps_reaches_every_device(eight, devices, update_on):
    step, ours, plain, references = trained(eight, devices, update_on)
    for variables, function in ((ours, step), (references, plain)):
        function(DATA)
        variables[0].set_value(np.full(variables[0].get_value().shape, 0.25, "float32"))
        function(DATA)
        variables[2].get_value(borrow=True)[...] *= 0.5
        function(DATA)
    assert_alike(ours, references)


@PLACES
def test_a_borrowed_value_keeps_what_it_had(eight, devices, update_on):
    step, ours, _, _ = trained(eight, devices, update_on)
    step(DATA)
    borrowed = [variable.get_value(borrow=True) for variable in ours]
    before = [value.copy() for value in borrowed]
    step(DATA)
    for value, old, variable in zip(borrowed, before, ours, strict=True):
        np.testing.assert_array_equal(value, old)
        assert value.flags.writeable
        assert not np.array_equal(variable.get_value(), old)


@PLACES
def test_a_value_of_another_shape_is_taken_from_the_next_step_on(eight, devices, update_on):
    def build() -> tuple:
        x = pt.matrix("x", dtype="float32")
        params = [pytensor.shared(np.ones((6, n), "float32"), name=f"w{n}") for n in (2, 3)]
        loss = sum((x @ param).sum(1).mean() for param in params)
        return x, params, tm.updates.momentum(tm.grad(loss, params), params, 0.1)

    x, ours, updates = build()
    step = tm.function([x], updates=updates, contexts=eight[:devices], update_on=update_on)
    x, _, reference_updates = build()
    plain = pytensor.function([x], updates=reference_updates, mode=PYTHON)
    for variables, function in ((updates, step), (reference_updates, plain)):
        function(DATA)
        for variable in [v for v in variables if v.get_value().shape == (6, 2)]:
            variable.set_value(np.zeros((6, 4), "float32"))
        function(DATA)
    assert_alike(updates, reference_updates)
    assert ours[0].get_value().shape == (6, 4)


def test_a_gradient_of_another_shape_than_its_variable_is_refused(eight):
    x = pt.matrix("x", dtype="float32")
    params = [pytensor.shared(np.ones((6, 6), "float32"), name=f"w{n}") for n in range(2)]
    before = [param.get_value() for param in params]
    updates = {param: param - tm.average(pt.dot(x.T, x)[: i + 5]) for i, param in enumerate(params)}
    step = tm.function([x], updates=updates, contexts=eight[:2])
    with pytest.raises(ValueError, match=r"has shape \(5, 6\), but the variable that it updates has \(6, 6\)"):
        step(DATA)
    for param, value in zip(params, before, strict=True):
        np.testing.assert_array_equal(param.get_value(), value)


@pytest.mark.parametrize("nonfinite", ["raise", "skip"])
def test_what_is_not_finite_is_found_within_a_vector(eight, nonfinite):
    step, ours, _, _ = trained(eight, 2, "host", nonfinite=nonfinite)
    step(DATA)
    bad = ours[1].get_value()
    bad[3] = np.inf
    ours[1].set_value(bad)
    before = [variable.get_value() for variable in ours]
    if nonfinite == "raise":
        with pytest.raises(tm.NonFiniteError, match=rf"would write NaN or infinity to .*{ours[1].name}"):
            step(DATA)
    else:
        step(DATA)
        assert step.skipped == 1
    for variable, value in zip(ours, before, strict=True):
        np.testing.assert_array_equal(variable.get_value(), value)


def test_vectors_are_joined_from_parts_that_xla_takes_over_and_cut_into_views_of_them():
    variables = weights()
    vector = Vector({v: v.get_value().shape for v in variables})
    values = {v: v.get_value() for v in variables}
    whole = vector.join(values)
    assert whole.shape == (vector.size,)
    for variable, value in values.items():
        part = vector.part(whole, variable)
        np.testing.assert_array_equal(part, value)
        assert np.shares_memory(part, whole)
        assert (part.ctypes.data - whole.ctypes.data) % 64 == 0
    with pytest.raises(ValueError, match=r"w1 has shape \(4,\), .* has \(5,\)"):
        vector.join({**values, variables[1]: np.zeros(4, "float32")})


def test_slots_hold_every_variable_once():
    first, second, third, *_ = weights()
    vector = Vector({v: v.get_value().shape for v in (second, first)})
    slots = slots_of([first, second, third], [vector, Vector({pt.vector("x"): (3,)})])
    assert slots == [vector, third]
    values = Values(slots, [vector.join({v: v.get_value() for v in vector}), "third"])
    assert set(values) == {first, second, third}
    assert values[third] == "third"
    np.testing.assert_array_equal(values[first], first.get_value())
