"""The order in which shards are added."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from jax.sharding import NamedSharding, PartitionSpec

from theano_mgpu.gather.device import all_reduce
from theano_mgpu.gather.tree import TreeSum, tree_sum
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


def streamed(leaves: dict[int, list[str]], add=pair) -> TreeSum:
    """The leaves of each place, one by one."""
    total = TreeSum(add)
    pairs = [(place, leaf) for place, of_place in sorted(leaves.items()) for leaf in of_place]
    for i, (place, leaf) in enumerate(pairs):
        total.push(place, leaf, following=pairs[i + 1][0] if i + 1 < len(pairs) else place + 1)
    return total


@given(counts)
def test_leaves_that_come_one_by_one_are_added_in_the_same_order(count):
    leaves = [str(i) for i in range(count)]
    assert streamed({i: [leaf] for i, leaf in enumerate(leaves)}).result() == tree_sum(leaves, pair)


def with_nothing(left: str | None, right: str | None) -> str | None:
    return pair(left, right) if left and right else left or right


@given(st.sets(st.integers(0, 40), min_size=1))
def test_a_place_without_a_leaf_counts_as_nothing(places):
    full = [str(i) if i in places else None for i in range(max(places) + 1)]
    assert streamed({i: [str(i)] for i in places}).result() == tree_sum(full, with_nothing)


@given(counts, st.data())
def test_two_leaves_of_one_place_are_added_first(count, data):
    twice = data.draw(st.integers(0, count - 1))
    leaves = {i: ["a", "b"] if i == twice else [str(i)] for i in range(count)}
    expected = [pair("a", "b") if i == twice else str(i) for i in range(count)]
    assert streamed(leaves).result() == tree_sum(expected, pair)


@given(counts)
def test_one_partial_sum_is_held_for_each_level(count):
    held = TreeSum(pair)
    for i in range(count):
        held.push(i, str(i), following=i + 1)
        assert len(held._branches) == (i + 1).bit_count()


@given(st.integers(0, 6), st.integers(0, 6), st.sets(st.integers(0, 63)))
def test_any_power_of_two_of_devices_adds_the_same_tree(shards, devices, missing):
    """Each its branch, then the branches: the bits do not depend on their number, shards may be missing."""
    shards, devices = 2**shards, 2**devices
    leaves = [None if i in missing else str(i) for i in range(shards)]
    places = -(-shards // devices)
    own = [leaves[d * places : (d + 1) * places] for d in range(devices)]
    branches = [
        streamed({i: [leaf] for i, leaf in enumerate(branch) if leaf}).result() if any(branch) else None
        for branch in own
    ]
    assert tree_sum(branches, with_nothing) == tree_sum(leaves, with_nothing)


@given(numbers)
def test_the_sum_is_a_sum(values):
    total = tree_sum([np.float64(v) for v in values], np.add)
    assert total == pytest.approx(math.fsum(values), rel=1e-12, abs=1e-6)


@pytest.mark.parametrize("dtype", ["float32", "float64", "float16", "int32", "bool"])
@pytest.mark.parametrize("shape", [(), (50,), (3, 20_001)])
@pytest.mark.parametrize("swaps", [False, True])
@pytest.mark.parametrize("devices", [1, 2, 3, 4, 6, 8])
def test_devices_add_in_the_order_of_the_tree(eight, devices, swaps, shape, dtype):
    """To the bit, on every one of them; floats of very different sizes show any other order."""
    if dtype == "float16" and devices & (devices - 1):
        pytest.skip("one fused sum of float16 is rounded once")
    rng = np.random.default_rng(devices)
    size = (devices, *shape)
    values = (rng.standard_normal(size) * 10.0 ** rng.integers(-4, 4, size)).astype(dtype)
    contexts = eight[:devices]
    mesh, each = mesh_of(contexts), PartitionSpec(AXIS)
    reduce = jax.shard_map(
        lambda row: all_reduce(row, devices, AXIS, swaps=swaps),
        mesh=mesh,
        in_specs=each,
        out_specs=each,
        check_vma=False,
    )
    with jax.enable_x64(True):
        found = jax.jit(reduce)(jax.device_put(values, NamedSharding(mesh, each)))
    expected = np.asarray(tree_sum(list(values), np.add))
    for shard in found.addressable_shards:
        assert np.asarray(shard.data)[0].tobytes() == expected.tobytes()


@pytest.mark.parametrize("devices", [2, 3, 8])
@pytest.mark.parametrize("combine", [np.maximum, np.minimum])
def test_devices_find_extremes_and_nan(eight, devices, combine):
    values = np.random.default_rng(devices).standard_normal((devices, 50)).astype("float32")
    values[devices - 1, 3] = np.nan
    mesh, each = mesh_of(eight[:devices]), PartitionSpec(AXIS)
    on_devices = {np.maximum: jnp.maximum, np.minimum: jnp.minimum}[combine]
    reduce = jax.shard_map(
        lambda row: all_reduce(row, devices, AXIS, on_devices),
        mesh=mesh,
        in_specs=each,
        out_specs=each,
        check_vma=False,
    )
    found = np.asarray(jax.jit(reduce)(jax.device_put(values, NamedSharding(mesh, each))))
    for row in found:
        np.testing.assert_array_equal(row, combine.reduce(values))
