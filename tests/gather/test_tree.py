"""The order in which shards are added."""

from __future__ import annotations

import math

import jax
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from theano_mgpu.gather.device import all_reduce
from theano_mgpu.gather.tree import TreeSum, added, tree_sum
from theano_mgpu.mirror import AXIS, mesh_of

counts = st.integers(1, 70)
numbers = st.lists(st.floats(-1e6, 1e6, width=32), min_size=1, max_size=70)


def pair(left: str, right: str) -> str:
    return f"({left}+{right})"


@pytest.mark.parametrize(
    ("count", "order"),
    [(1, "0"), (2, "(0+1)"), (3, "((0+1)+2)"), (4, "((0+1)+(2+3))"), (6, "(((0+1)+(2+3))+(4+5))")],
)
def test_neighbours_are_added_first(count, order):
    assert tree_sum(list(map(str, range(count))), pair) == order


@given(counts)
def test_leaves_that_come_one_by_one_are_added_in_the_same_order(count):
    leaves = [str(i) for i in range(count)]
    streamed = TreeSum(pair)
    for leaf in leaves:
        streamed.push(leaf)
    assert streamed.result() == tree_sum(leaves, pair)


@given(counts)
def test_one_partial_sum_is_held_for_each_level(count):
    held = TreeSum(pair)
    for i in range(count):
        held.push(str(i))
        assert len(held._partial) <= math.floor(math.log2(i + 1)) + 1


@given(counts, st.data())
def test_a_power_of_two_of_devices_adds_whole_branches(count, data):
    """So the sum of the devices' own sums is the whole tree's: the bits do not depend on their number."""
    per_device = 2 ** data.draw(st.integers(0, 4))
    leaves = [str(i) for i in range(count)]
    branches = [tree_sum(leaves[i : i + per_device], pair) for i in range(0, count, per_device)]
    assert tree_sum(branches, pair) == tree_sum(leaves, pair)


@given(numbers)
def test_the_sum_is_a_sum(values):
    total = tree_sum([np.float64(v) for v in values], np.add)
    assert total == pytest.approx(math.fsum(values), rel=1e-12, abs=1e-6)


def test_arrays_are_added_one_by_one():
    left, right = [np.arange(3.0, dtype="float32"), np.ones((2, 2), "float32")], [np.ones(3, "float32")] * 2
    right[1] = np.full((2, 2), 2, "float32")
    for result, a, b in zip(added(left, right), left, right, strict=True):
        np.testing.assert_array_equal(np.asarray(result), a + b)


@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8])
def test_devices_add_in_the_order_of_the_tree(eight, devices):
    """To the bit, on every one of them; float32 of very different sizes shows any other order."""
    rng = np.random.default_rng(devices)
    values = (rng.standard_normal((devices, 50)) * 10.0 ** rng.integers(-4, 5, (devices, 50))).astype("float32")
    contexts = eight[:devices]
    mesh, each = mesh_of(contexts), PartitionSpec(AXIS)
    reduce = jax.shard_map(
        lambda row: all_reduce(row, devices, AXIS), mesh=mesh, in_specs=each, out_specs=each, check_vma=False
    )
    found = jax.jit(reduce)(jax.device_put(values, NamedSharding(mesh, each)))
    expected = tree_sum(list(values), np.add)
    for shard in found.addressable_shards:
        assert np.asarray(shard.data)[0].tobytes() == expected.tobytes()
