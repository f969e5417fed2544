"""The cut itself, without JAX: which part of a graph is where. Structure, no numbers."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytensor
import pytensor.tensor as pt
import pytest
from pytensor.graph.basic import Constant, equal_computations
from pytensor.graph.traversal import ancestors

import theano_mgpu as tm
from theano_mgpu.averages import Average, ShardReduction
from theano_mgpu.cut import Output, cut

x = pt.matrix("x", dtype="float32")
scale = pt.scalar("scale", dtype="float32")
weight = pytensor.shared(np.ones(3, "float32"), name="weight")
velocity = pytensor.shared(np.zeros(3, "float32"), name="velocity")


def same(found, expected, pairs=()) -> bool:
    """Equal computations, up to names, with the first of each pair standing for the second."""
    found, expected = list(found), list(expected)
    return equal_computations(found, expected, [a for a, _ in pairs], [b for _, b in pairs])


def test_what_is_averaged_is_the_device_part_and_the_update_rule_the_host_part():
    loss = ((x * weight) ** 2).mean()
    gradient = pytensor.grad(loss, weight)
    new_velocity = np.float32(0.9) * velocity - scale * tm.average(gradient)
    parts = cut([x, scale], [tm.average(loss)], {velocity: new_velocity, weight: weight + new_velocity})

    assert (parts.split, parts.whole) == ((x,), (scale,))
    assert same(sorted_by_size(parts.device.outputs), sorted_by_size([loss, gradient]))
    assert (parts.device.inputs, parts.device.shared) == ((x,), (weight,))
    assert [r.kind for r in parts.reductions] == ["average", "average"]
    assert not any(isinstance(v.owner.op, ShardReduction) for v in ancestors(parts.device.outputs) if v.owner)

    placeholders = {r.value.type.ndim: r.placeholder for r in parts.reductions}
    expected = np.float32(0.9) * velocity - scale * placeholders[1]
    assert same(parts.host.outputs, [placeholders[0], expected, weight + expected])
    assert parts.host.inputs == (*(r.placeholder for r in parts.reductions), scale)
    assert set(parts.host.shared) == {weight, velocity}
    assert parts.updated == (velocity, weight)


def sorted_by_size(variables):
    return sorted(variables, key=lambda variable: variable.type.ndim)


def test_outputs_know_where_they_come_from():
    per_example, mean = x.sum(1), x.mean()
    parts = cut([x, scale], [per_example, tm.average(mean), x, scale * 2], {})
    assert parts.outputs == (Output(True, 0), Output(False, 0), Output(True, 1), Output(False, 1))
    assert same(parts.per_example, [per_example, x])
    assert same(parts.device.outputs, [mean, per_example, x])
    assert same(parts.host.outputs, [parts.reductions[0].placeholder, scale * 2])


def test_an_average_is_cut_once_however_often_it_is_used():
    mean = tm.average(x.mean(0))
    parts = cut([x], [mean, mean * 2], {weight: weight + mean})
    assert len(parts.reductions) == 1
    placeholder = parts.reductions[0].placeholder
    assert same(parts.host.outputs, [placeholder, placeholder * 2, weight + placeholder])


def test_averages_and_totals_are_told_apart_and_labelled():
    loss = x.mean()
    loss.name = "loss"
    parts = cut([x], [tm.average(loss), tm.total(x.shape[0])], {})
    assert {r.label for r in parts.reductions} == {"average of loss", "total of unnamed"}


def test_only_the_last_average_is_cut_and_those_below_stay_on_the_devices():
    """Synchronised normalisation: the inner average becomes a collective of the device part."""
    centre = tm.average(x.mean(0))
    spread = ((x - centre) ** 2).mean()
    parts = cut([x], [tm.average(spread)], {})
    assert len(parts.reductions) == 1
    assert same(parts.device.outputs, [spread])


def test_averages_of_what_is_the_same_on_every_shard_are_left_out_below_the_cut():
    """The pullback of a total averages 1: no collective is needed for that."""
    loss = tm.total((x * weight).sum())
    parts = cut([x], [], {weight: weight - tm.grad(loss, weight)})
    assert not any(isinstance(v.owner.op, Average) for v in ancestors(parts.device.outputs) if v.owner)


def test_what_never_meets_the_batch_is_computed_once_on_the_host():
    penalty = (weight**2).sum()
    parts = cut([x, scale], [penalty, tm.average(x.mean())], {weight: weight * scale})
    assert same(parts.host.outputs, [penalty, parts.reductions[0].placeholder, weight * scale])
    assert same(parts.device.outputs, [x.mean()])
    assert parts.device.shared == ()
    assert parts.device.inputs == (x,)


def test_an_input_needed_on_both_sides_is_an_input_of_both():
    parts = cut([x, scale], [tm.average((x * scale).mean()) * scale], {})
    assert parts.device.inputs == (x, scale)
    assert scale in parts.host.inputs


def test_broadcast_inputs_are_whole_and_no_batch_data():
    mask = pt.vector("mask", dtype="float32")
    parts = cut([x, mask], [tm.average((x * mask).mean())], {weight: weight * mask}, broadcast=[mask])
    assert (parts.split, parts.whole) == ((x,), (mask,))
    with pytest.raises(tm.CutError, match="weight"):
        cut([x, mask], [], {weight: weight * mask})


def test_generators_are_kept_apart_and_may_descend_from_the_batchs_shape():
    generator = pytensor.shared(np.random.default_rng(0), name="generator")
    following, noise = pt.random.normal(0, 1, size=x.shape, rng=generator, return_next_rng=True)
    parts = cut([x], [tm.average((x * noise).mean())], {generator: following, weight: weight * 2})
    assert (parts.generators, parts.updated) == ((generator,), (weight,))
    assert generator in parts.device.shared
    assert same(parts.host.outputs, [parts.reductions[0].placeholder, weight * 2])


def test_a_draw_of_the_batchs_size_is_batch_data():
    generator = pytensor.shared(np.random.default_rng(0), name="generator")
    following, noise = pt.random.normal(0, 1, size=x.shape, rng=generator, return_next_rng=True)
    assert cut([x], [noise], {generator: following}).outputs == (Output(True, 0),)
    with pytest.raises(tm.CutError, match="weight"):
        cut([x], [], {weight: noise.sum(0).astype("float32"), generator: following})


def test_an_update_without_an_average_is_refused_with_the_way_to_the_batch():
    hidden = pt.tanh(x * weight)
    hidden.name = "hidden"
    gradient = pytensor.grad((hidden**2).mean(), weight)
    gradient.name = "gradient"
    with pytest.raises(tm.CutError, match=r"(?s)new value of weight .*gradient <- .* <- x.*tm\.average.*tm\.grad"):
        cut([x], [], {weight: weight - scale * gradient})


def test_a_scalar_of_the_batch_is_refused_as_an_output():
    loss = (x**2).mean()
    loss.name = "loss"
    with pytest.raises(tm.CutError, match=r"scalar loss depends on the batch .*tm\.average\(loss\)"):
        cut([x], [loss], {})
    with pytest.raises(tm.CutError, match="average"):
        cut([x], [x.shape[0]], {})


def test_a_product_of_an_average_and_the_batch_is_still_batch_data():
    with pytest.raises(tm.CutError, match="weight"):
        cut([x], [], {weight: tm.average(x.mean(0)) * x.mean(0)})


def test_a_cut_is_a_value():
    """It cannot be changed, leaves the graph it was made of alone, and comes out alike a second time."""
    loss = tm.average(((x * weight) ** 2).mean())
    update = weight - scale * tm.grad(loss, weight)
    one, two = (cut([x, scale], [loss], {weight: update}) for _ in range(2))
    with pytest.raises(dataclasses.FrozenInstanceError):
        one.split = ()
    pairs = list(zip((r.placeholder for r in one.reductions), (r.placeholder for r in two.reductions), strict=True))
    assert same(one.device.outputs, two.device.outputs)
    assert same(one.host.outputs, two.host.outputs, pairs)
    assert isinstance(loss.owner.op, Average)


def test_programs_need_nothing_but_their_inputs():
    """Every leaf of both parts is an input, a shared variable or a constant."""
    loss = ((x * weight) ** 2).mean()
    generator = pytensor.shared(np.random.default_rng(0), name="generator")
    following, noise = pt.random.normal(0, 1, size=x.shape, rng=generator, return_next_rng=True)
    updates = {weight: weight - scale * tm.grad(loss * noise.mean(), weight), generator: following}
    parts = cut([x, scale], [tm.average(loss), x * 2], updates)
    for program in (parts.device, parts.host):
        leaves = {v for v in ancestors(program.outputs) if v.owner is None and not isinstance(v, Constant)}
        assert leaves <= {*program.inputs, *program.shared}


def test_it_prints_as_a_diagram():
    loss = ((x * weight) ** 2).mean()
    loss.name = "loss"
    parts = cut([x, scale], [tm.average(loss), x * 2], {weight: weight - scale * tm.grad(loss, weight)})
    printed = str(parts)
    for name in ("x float32", "scale float32", "weight", "loss"):
        assert name in printed
    order = ["inputs", "device part", "outputs"]
    assert sorted(order, key=printed.index) == order
    assert "host part" in printed


def test_a_graph_without_a_batch_is_all_host():
    parts = cut([scale], [scale * 2], {weight: weight * scale})
    assert (parts.split, parts.reductions, parts.device.outputs) == ((), (), ())
    assert same(parts.host.outputs, [scale * 2, weight * scale])
    assert str(cut([], [], {}))
