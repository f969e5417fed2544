"""What a backward pass computes again: structure by hand first, then numbers, bits and memory over devices."""

from __future__ import annotations

import functools
import inspect
import sys

import jax
import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from comparison import Graph, compare_with_pytensor
from pytensor.graph.basic import equal_computations
from pytensor.graph.replace import clone_replace
from pytensor.graph.traversal import toposort

import theano_mgpu as tm
from theano_mgpu.averages import shard_weight
from theano_mgpu.cut import Program
from theano_mgpu.lowering.graph import lower
from theano_mgpu.nn.convolution import Conv2d
from theano_mgpu.recomputation import After, recomputed
from theano_mgpu.regions import Mark

x = pt.matrix("x", dtype="float32")
u = pytensor.shared(np.ones((3, 3), "float32"), name="u")
v = pytensor.shared(np.ones((3, 3), "float32"), name="v")


def first(x):
    return pt.tanh(x @ u)


def second(x):
    return pt.sin(x @ v)


def later(x, *cotangents):
    return After()(x, shard_weight(), *cotangents)


def end_of(result, power=2):
    """A loss, and its cotangent where it begins."""
    loss = (result**power).sum()
    return loss, pytensor.grad(loss, result)


def again(block, argument, cotangent, *parameters):
    """PyTensor's gradients of the block, with respect to its argument and parameters, computed at ``argument``."""
    anew = argument.type()
    result = block(anew)
    gradients = pytensor.grad(None, [anew, *parameters], known_grads={result: cotangent})
    return clone_replace(gradients, {anew: argument})


def same(found, expected) -> bool:
    return equal_computations(list(found), list(expected))


# Structure: each expected graph is built by hand, with PyTensor's gradient and ``After``.


def test_the_forward_pass_is_the_block_as_it_stands():
    twice = tm.recompute(second)(tm.recompute(first)(x))
    assert same(recomputed([twice, twice.sum(), x]), [second(first(x)), second(first(x)).sum(), x])


def test_the_backward_pass_computes_from_the_argument_after_the_cotangent():
    loss, _ = end_of(tm.recompute(first)(x))
    expected, cotangent = end_of(first(x))
    gradients = again(first, later(x, cotangent), cotangent, u)
    assert same(recomputed([loss, *pytensor.grad(loss, [x, u])]), [expected, *gradients])


def test_regions_in_a_chain_keep_their_arguments_alone():
    loss, _ = end_of(tm.recompute(second)(tm.recompute(first)(x)))
    between = first(x)
    _, cotangent = end_of(second(between))
    between_cotangent, by_v = again(second, later(between, cotangent), cotangent, v)
    _, by_u = again(first, later(x, between_cotangent), between_cotangent, u)
    assert same(recomputed(pytensor.grad(loss, [u, v])), [by_u, by_v])


def test_a_region_in_a_region_is_computed_again_from_what_the_outer_one_computes_again():
    loss, _ = end_of(tm.recompute(lambda x: tm.recompute(second)(tm.recompute(first)(x)))(x))
    _, cotangent = end_of(second(first(x)))
    argument = later(x, cotangent)
    between_cotangent, by_v = again(second, later(first(argument), cotangent), cotangent, v)
    _, by_u = again(first, later(argument, between_cotangent), between_cotangent, u)
    assert same(recomputed(pytensor.grad(loss, [u, v])), [by_u, by_v])


def test_all_cotangents_of_one_backward_pass_come_before_it():
    both = tm.recompute(lambda x: (first(x), second(x)))(x)
    one, other = first(x), second(x)
    first_cotangent, second_cotangent = pytensor.grad((one**2).sum() + (other**3).sum(), [one, other])
    argument = later(x, first_cotangent, second_cotangent)
    _, by_u = again(first, argument, first_cotangent, u)
    _, by_v = again(second, argument, second_cotangent, v)
    loss = (both[0] ** 2).sum() + (both[1] ** 3).sum()
    assert same(recomputed(pytensor.grad(loss, [u, v])), [by_u, by_v])


def test_two_backward_passes_compute_again_each_for_itself():
    result = tm.recompute(first)(x)
    gradients = recomputed([pytensor.grad(end_of(result, power)[0], u) for power in (2, 3)])
    cotangents = [end_of(first(x), power)[1] for power in (2, 3)]
    assert same(gradients, [again(first, later(x, cotangent), cotangent, u)[1] for cotangent in cotangents])


def test_what_is_registered_inside_is_of_the_forward_pass():
    taps = []

    def block(x):
        y = first(x)
        taps.append(y.mean())
        return y * 2

    gradient = pytensor.grad(tm.recompute(block)(x).sum(), u)
    tap, _ = recomputed([taps[0], gradient])
    assert same([tap], [first(x).mean()])


def test_an_average_inside_is_kept():
    averages = []

    def centred(x):
        y = first(x)
        averages.append(tm.average(y.sum(axis=0)))
        return pt.tanh(y - averages[-1])

    loss, _ = end_of(tm.recompute(centred)(x))
    _, cotangent = end_of(centred(x))
    anew = x.type()
    gradient = pytensor.grad(None, u, known_grads={centred(anew): cotangent})
    _, kept, of_anew = averages
    expected = clone_replace([gradient], {anew: later(x, cotangent), of_anew: kept})
    assert same(recomputed([pytensor.grad(loss, u)]), expected)


def test_draws_are_computed_again_from_the_same_generator():
    rng = pytensor.shared(np.random.default_rng(0), name="rng")
    gradient = pytensor.grad(tm.recompute(lambda x: tm.nn.dropout(x, 0.5, rng)[1] ** 2)(x).sum(), x)
    waits = [node for node in toposort(recomputed([gradient])) if isinstance(node.op, After)]
    assert {node.inputs[0] for node in waits} == {x, rng}


def test_pytensors_rewrites_keep_the_copies_apart():
    """Merging takes equal computations for one."""
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, 8, 8, 4), dtype="float32")
    loss = network(store, images, blocks=3, wrap=tm.recompute).sum()
    graph = lower(Program((images,), tuple(store.trainable()), tuple(pytensor.grad(loss, store.trainable())))).graph
    kinds = [type(node.op) for node in graph.apply_nodes]
    assert kinds.count(Conv2d) == 2 * 3
    assert not [kind for kind in kinds if issubclass(kind, Mark)]


def test_a_graph_without_regions_is_left_alone():
    loss = (first(x) ** 2).sum()
    outputs = [loss, pytensor.grad(loss, u)]
    assert all(new is old for new, old in zip(recomputed(outputs), outputs, strict=True))


def test_a_deep_network_needs_no_recursion():
    y = x
    for _ in range(100):
        y = tm.recompute(first)(y)
    gradient = pytensor.grad(y.sum(), u)
    limit = sys.getrecursionlimit()
    sys.setrecursionlimit(len(inspect.stack(0)) + 60)
    try:
        found = recomputed([gradient])
    finally:
        sys.setrecursionlimit(limit)
    assert sum(isinstance(node.op, After) for node in toposort(found)) == 100


# Numbers.


def block(store, name, x, wrap, *, convolutions=1, drop=0.0, sync=False):
    def layers(x):
        for i in range(convolutions):
            x = tm.layers.conv2d(store, f"{name}.conv{i}", x, x.type.shape[-1], 3, padding=1, bias=False)
            x = tm.nn.relu(tm.layers.batch_norm(store, f"{name}.norm{i}", x, True, sync=sync))
        return tm.layers.dropout(store, f"{name}.dropout", x, drop, True) if drop else x

    return wrap(layers)(x)


def network(store, images, blocks, wrap, **options):
    x = images
    for i in range(blocks):
        x = block(store, f"block{i}", x, wrap, **options)
    return tm.nn.global_avg_pool2d(x)


def unwrapped(block):
    return block


def nested(block):
    return tm.recompute(lambda x: tm.recompute(block)(x))


def training(wrap, blocks=2, size=8, channels=4, **options):
    """A training step's graph and its store."""
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, size, size, channels), dtype="float32")
    pooled = network(store, images, blocks, wrap, **options)
    loss = ((pooled - np.linspace(0, 1, channels, dtype="float32")) ** 2).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.1, momentum=0.9) | store.updates()
    return store, Graph([images], [tm.average(loss), pooled], updates)


def batches(*examples, size=8, channels=4):
    rng = np.random.default_rng(0)
    return [(rng.standard_normal((n, size, size, channels), dtype="float32"),) for n in examples]


def values_after(wrap, contexts, given, network=None, **options):
    """The step, and the bits of its outputs and of the store after some calls."""
    store, graph = training(wrap, **(network or {"drop": 0.3}))
    step = tm.function(graph.inputs, graph.outputs, updates=graph.updates, contexts=contexts, **options)
    with jax.transfer_guard("disallow"):
        outputs = [np.asarray(o).tobytes() for batch in given for o in step(*batch)]
    return step, [*outputs, *(v.tobytes() for v in store.get_values().values())]


@pytest.mark.parametrize("update_on", ["host", "device"])
def test_a_step_is_plain_pytensors(eight, update_on):
    def dense():
        store = tm.ParameterStore(seed=0)
        y = images = pt.tensor("images", shape=(None, 3), dtype="float32")
        for i in range(3):
            y = tm.recompute(lambda y, i=i: pt.tanh(tm.layers.dense(store, f"dense{i}", y, 3)))(y)
        params = store.trainable()
        updates = tm.updates.momentum(tm.grad((y**2).mean(), params), params, learning_rate=0.1)
        return Graph([images], [tm.average(y.mean()), y], updates)

    values = [(np.random.default_rng(n).standard_normal((n, 3)).astype("float32"),) for n in (8, 7)]
    compare_with_pytensor(dense, values, eight[:4], update_on=update_on)


def test_a_step_with_shared_statistics_is_plain_pytensors(eight):
    compare_with_pytensor(lambda: training(nested, sync=True)[1], batches(8, 8), eight[:4])


@pytest.fixture(scope="module")
def as_it_stands(eight):
    """Bits of the network without regions, in four shards, by the number of devices."""
    return functools.cache(lambda devices: values_after(unwrapped, eight[:devices], batches(16, 16), shards=4)[1])


@pytest.mark.parametrize(
    ("wrap", "devices"),
    [
        (tm.recompute, 2),
        (nested, 2),
        *(pytest.param(tm.recompute, devices, marks=pytest.mark.slow) for devices in (1, 4)),
    ],
)
def test_the_bits_are_those_of_the_network_as_it_stands(eight, as_it_stands, wrap, devices):
    """With dropout; one device takes four shards in turns."""
    found = values_after(wrap, eight[:devices], batches(16, 16), shards=4)[1]
    assert found == as_it_stands(devices)


@pytest.mark.parametrize(
    "function", [{"precision": "bfloat16"}, pytest.param({"update_on": "device"}, marks=pytest.mark.slow)]
)
def test_the_bits_are_the_same_under_options(eight, function):
    _, expected = values_after(unwrapped, eight[:2], batches(8, 8), **function)
    assert values_after(tm.recompute, eight[:2], batches(8, 8), **function)[1] == expected


def test_second_derivatives_are_plain_pytensors(eight):
    def penalised():
        weight = pytensor.shared(np.random.default_rng(0).standard_normal((3, 3)).astype("float32"), name="weight")
        y = tm.recompute(lambda x: pt.tanh(x @ weight))(tm.recompute(lambda x: pt.sin(x @ weight))(x))
        slope = pytensor.grad((y**2).sum(), x)
        loss = (slope**2).mean()
        return Graph([x], [slope], tm.updates.sgd(tm.grad(loss, [weight]), [weight], learning_rate=0.1))

    values = np.random.default_rng(1).standard_normal((8, 3)).astype("float32")
    compare_with_pytensor(penalised, [(values,)], eight[:2])


def test_a_region_inside_a_loop_is_plain_pytensors(eight):
    def looped():
        weight = pytensor.shared(np.eye(3, dtype="float32"), name="weight")
        block = tm.recompute(lambda h: pt.tanh(h @ weight))
        h = pytensor.scan(block, outputs_info=[x], n_steps=3, return_updates=False)[-1]
        loss = (h**2).mean()
        return Graph([x], tm.average(loss), tm.updates.sgd(tm.grad(loss, [weight]), [weight], learning_rate=0.1))

    values = np.random.default_rng(1).standard_normal((8, 3)).astype("float32")
    compare_with_pytensor(looped, [(values,)], eight[:2])


def test_a_loop_inside_a_region_is_plain_pytensors(eight):
    def looped():
        weight = pytensor.shared(np.eye(3, dtype="float32"), name="weight")

        def steps(x):
            return pytensor.scan(lambda h: pt.tanh(h @ weight), outputs_info=[x], n_steps=3, return_updates=False)[-1]

        loss = (tm.recompute(steps)(x) ** 2).mean()
        return Graph([x], tm.average(loss), tm.updates.sgd(tm.grad(loss, [weight]), [weight], learning_rate=0.1))

    values = np.random.default_rng(1).standard_normal((8, 3)).astype("float32")
    compare_with_pytensor(looped, [(values,)], eight[:2])


def test_a_region_may_stand_above_the_cut(eight):
    def above():
        weight = pytensor.shared(np.float32(2), name="weight")
        mean = tm.average((x * weight).mean())
        penalty = tm.recompute(lambda w: pt.exp(w) * w)(weight)
        return Graph([x], mean, {weight: weight - np.float32(0.1) * pytensor.grad(penalty, weight) - mean})

    compare_with_pytensor(above, [(np.ones((4, 3), "float32"),)], eight[:2])


@pytest.mark.slow
def test_a_deep_network_takes_less_than_half_the_memory(eight):
    """Of six blocks of two convolutions; 0.3 was measured."""

    def temporary_bytes(wrap):
        shape = {"size": 32, "channels": 8}
        step, _ = values_after(wrap, eight[:1], batches(16, **shape), {"blocks": 6, "convolutions": 2, **shape})
        return step._assembly.program._temporary_bytes

    kept, again, nested_again = map(temporary_bytes, (unwrapped, tm.recompute, nested))
    assert again < 0.5 * kept
    assert nested_again < 0.5 * kept
