"""A batch into shards and rounds."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from theano_mgpu.split import place, rounds, whole_batch_round

sizes = {"examples": st.integers(1, 300), "shards": st.integers(1, 40), "devices": st.integers(1, 9)}


@given(**sizes)
def test_every_example_is_in_one_live_shard_and_in_order(examples, shards, devices):
    taken = []
    for turn in rounds(examples, shards, devices):
        for start in turn.starts[: turn.live]:
            taken.extend(range(start, start + turn.size))
    assert taken == list(range(examples))


@given(**sizes)
def test_shards_have_two_sizes_at_most_and_none_is_empty(examples, shards, devices):
    turns = rounds(examples, shards, devices)
    found = [turn.size for turn in turns for _ in range(turn.live)]
    assert len(found) == min(shards, examples)
    assert min(found) >= 1
    assert max(found) - min(found) <= 1
    assert found == sorted(found, reverse=True)


@given(**sizes)
def test_weights_are_parts_of_the_batch(examples, shards, devices):
    turns = rounds(examples, shards, devices)
    for turn in turns:
        assert turn.weights[: turn.live] == (turn.size / examples,) * turn.live
        assert turn.weights[turn.live :] == (0,) * (devices - turn.live)
    assert sum(sum(turn.weights) for turn in turns) == pytest.approx(1, rel=1e-12)


@given(**sizes)
def test_shards_are_numbered_alike_for_any_number_of_devices(examples, shards, devices):
    """What a shard holds and the number that its random draws are keyed by depend on the batch alone."""

    def numbered(count):
        turns = rounds(examples, shards, count)
        return [(t.shards[i], t.starts[i], t.size) for t in turns for i in range(t.live)]

    assert numbered(devices) == numbered(1)
    assert [number for number, _, _ in numbered(devices)] == list(range(min(shards, examples)))


@given(**sizes)
def test_rounds_are_full_but_for_one_of_each_size(examples, shards, devices):
    turns = rounds(examples, shards, devices)
    assert sum(turn.live < devices for turn in turns) <= 2
    for turn in turns:
        assert len(turn.shards) == len(turn.starts) == len(turn.weights) == devices
        assert set(turn.shards[turn.live :]) <= {turn.shards[turn.live - 1]}


@pytest.mark.parametrize(
    ("examples", "shards", "devices", "expected"),
    [
        (8, 4, 4, [(2, 4)]),
        (8, 4, 2, [(2, 2), (2, 2)]),
        (7, 4, 4, [(2, 3), (1, 1)]),
        (1, 8, 8, [(1, 1)]),
        (5, 3, 2, [(2, 2), (1, 1)]),
        (10, 1, 4, [(10, 1)]),
    ],
)
def test_rounds_by_example(examples, shards, devices, expected):
    assert [(turn.size, turn.live) for turn in rounds(examples, shards, devices)] == expected


@settings(max_examples=15)
@given(examples=st.integers(1, 20), shards=st.integers(1, 10), devices=st.sampled_from([1, 3, 8]))
def test_each_device_gets_its_shard(eight, examples, shards, devices):
    contexts = eight[:devices]
    batch = [np.arange(examples * 2, dtype="float32").reshape(examples, 2), np.arange(examples, dtype="int32")]
    for turn in rounds(examples, shards, devices):
        for array, placed in zip(batch, place(batch, turn, contexts), strict=True):
            assert placed.shape == (devices * turn.size, *array.shape[1:])
            for shard in placed.addressable_shards:
                position = contexts.devices.index(shard.device)
                start = turn.starts[position]
                np.testing.assert_array_equal(np.asarray(shard.data), array[start : start + turn.size])


def test_a_step_without_a_batch_is_computed_by_the_first_device():
    turn = whole_batch_round(3)
    assert (turn.weights, turn.live) == ((1, 0, 0), 1)


def test_no_inputs_place_nothing(eight):
    assert place([], rounds(4, 2, 2)[0], eight[:2]) == []
