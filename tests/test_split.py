"""A batch into shards and rounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theano_mgpu.split import in_order, joint_round, parts_of_batch, place, placement, rounds, whole_batch_round

sizes = {"examples": st.integers(1, 300), "shards": st.integers(1, 40), "devices": st.integers(1, 9)}


def shards_of(turns):
    """Number, first example and size of every shard, in order."""
    return sorted((t.shards[d], t.starts[d], t.size) for t in turns for d in t.live)


@given(**sizes)
def test_every_example_is_in_one_shard_and_in_order(examples, shards, devices):
    taken = [i for _, start, size in shards_of(rounds(examples, shards, devices)) for i in range(start, start + size)]
    assert taken == list(range(examples))


@given(**sizes)
def test_shards_have_two_sizes_at_most_and_none_is_empty(examples, shards, devices):
    found = [size for _, _, size in shards_of(rounds(examples, shards, devices))]
    assert len(found) == min(shards, examples)
    assert min(found) >= 1
    assert max(found) - min(found) <= 1


@given(**sizes)
def test_weights_are_parts_of_the_batch(examples, shards, devices):
    turns = rounds(examples, shards, devices)
    for turn in turns:
        assert turn.live
        assert set(turn.weights) <= {turn.size / examples, 0}
        assert len(turn.shards) == len(turn.starts) == len(turn.weights) == devices
    assert sum(sum(turn.weights) for turn in turns) == pytest.approx(1, rel=1e-12)


@given(**sizes)
def test_a_shard_is_the_same_on_any_number_of_devices(examples, shards, devices):
    """What it holds and the number that its random draws are keyed by depend on the batch alone."""
    assert shards_of(rounds(examples, shards, devices)) == shards_of(rounds(examples, shards, 1))


@given(**sizes)
def test_a_device_has_neighbouring_shards_in_the_order_of_their_places(examples, shards, devices):
    turns = rounds(examples, shards, devices)
    assert [turn.place for turn in turns] == sorted(turn.place for turn in turns)
    places = -(-shards // devices)
    for turn in turns:
        for device in turn.live:
            assert turn.shards[device] == device * places + turn.place
        assert set(turn.shards) == {turn.shards[device] for device in turn.live}  # what idle devices repeat


@given(examples=st.integers(1, 300), devices=st.integers(1, 9), places=st.sampled_from([1, 2, 4, 8]))
def test_an_uneven_batch_takes_one_round_more(examples, devices, places):
    turns = rounds(examples, places * devices, devices)
    assert len(turns) <= places + 1
    assert sum(len(turn.live) < devices for turn in turns) <= 2


@pytest.mark.parametrize(
    ("examples", "shards", "devices", "expected"),
    [
        (8, 4, 4, [(2, 4)]),
        (8, 4, 2, [(2, 2), (2, 2)]),
        (7, 4, 4, [(2, 3), (1, 1)]),
        (1, 8, 8, [(1, 1)]),
        (5, 3, 2, [(2, 2), (1, 1)]),
        (10, 1, 4, [(10, 1)]),
        (19, 8, 2, [(3, 2), (2, 2), (3, 1), (2, 1), (2, 2)]),
    ],
)
def test_rounds_by_example(examples, shards, devices, expected):
    assert [(turn.size, len(turn.live)) for turn in rounds(examples, shards, devices)] == expected


@given(**sizes)
def test_results_come_in_the_order_of_the_batch(examples, shards, devices):
    turns = rounds(examples, shards, devices)
    batch = np.arange(examples)
    results = [np.concatenate([batch[start : start + turn.size] for start in turn.starts]) for turn in turns]
    np.testing.assert_array_equal(in_order(turns, results), batch)


@settings(max_examples=15)
@given(examples=st.integers(1, 20), shards=st.integers(1, 10), devices=st.sampled_from([1, 3, 8]))
def test_each_device_gets_its_shard(eight, examples, shards, devices):
    contexts = eight[:devices]
    batch = [np.arange(examples * 2, dtype="float32").reshape(examples, 2), np.arange(examples, dtype="int32")]
    for turn in rounds(examples, shards, devices):
        for array, placed in zip(batch, place(batch, turn, contexts), strict=True):
            assert placed.shape == (devices * turn.size, *array.shape[1:])
            if placement(contexts) is None:
                np.testing.assert_array_equal(placed, array[turn.starts[0] : turn.starts[0] + turn.size])
                continue
            for shard in placed.addressable_shards:
                position = contexts.devices.index(shard.device)
                start = turn.starts[position]
                np.testing.assert_array_equal(np.asarray(shard.data), array[start : start + turn.size])


def test_a_step_without_a_batch_is_computed_by_the_first_device():
    turn = whole_batch_round(3)
    assert (turn.weights, turn.live) == ((1, 0, 0), (0,))


def test_no_inputs_place_nothing(eight):
    assert place([], rounds(4, 2, 2)[0], eight[:2]) == []


@given(examples=st.integers(1, 100), shards=st.integers(1, 8), idle=st.integers(0, 3))
def test_a_joint_round_has_all_examples_in_order_at_a_time(examples, shards, idle):
    """Shards that need each other's averages: of one size, and beside them the last example of each larger one."""
    devices = shards + idle
    turn = joint_round(examples, shards, devices)
    taken = [
        [i for part in turn.parts if d in part.live for i in range(part.starts[d], part.starts[d] + part.size)]
        for d in range(devices)
    ]
    assert [i for of_device in taken for i in of_device] == list(range(examples))
    of_ranks = parts_of_batch(examples, shards, (1,) * devices)
    assert [len(of_device) for of_device in taken] == [part.examples for part in of_ranks]
    numbers = [part.shards[d] for part in turn.parts for d in part.live]
    assert numbers == list(range(len(numbers)))
    assert sum(sum(part.weights) for part in turn.parts) == pytest.approx(1, rel=1e-12)
    assert sum(part.size for part in turn.parts) <= -(-examples // shards)  # no device has more than a larger shard
    batch = np.arange(examples)
    results = [np.concatenate([batch[s : s + part.size] for s in part.starts]) for part in turn.parts]
    np.testing.assert_array_equal(in_order([turn], results), batch)
