"""What ranks tell each other. Everything expected follows from a rank's number, so that any number of ranks will do."""

from __future__ import annotations

import numpy as np
import pytest

from theano_mgpu.cluster import Cluster

pytestmark = pytest.mark.ranks


def drawn(rank: int, shape: tuple[int, ...], dtype: str) -> np.ndarray:
    """Arbitrary values, which every rank can draw for every other one."""
    if dtype == "bool":
        return np.asarray(np.random.default_rng([17, rank]).random(shape) < 0.5)
    size = np.dtype(dtype).itemsize * int(np.prod(shape))
    return np.frombuffer(np.random.default_rng([17, rank]).bytes(size), dtype).reshape(shape)


@pytest.mark.parametrize(
    "value",
    [
        lambda rank: None,
        lambda rank: ("rank", rank, {"seconds": rank / 3}),
        lambda rank: "x" * (600 + rank),
        lambda rank: b"y" * (1_000_000 * (rank % 2)),  # one rank's fits one message, another one's does not
        lambda rank: b"z" * (450 + 20 * rank),  # around the length of one message
    ],
    ids=["none", "short", "long", "unequal", "around-one-message"],
)
def test_gathered_is_what_each_rank_gave(ranks: Cluster, value) -> None:
    assert ranks.gathered(value(ranks.rank)) == [value(rank) for rank in range(ranks.size)]


def test_gathered_is_right_for_every_length_near_the_end_of_a_message(ranks: Cluster) -> None:
    for length in range(440, 530):
        assert ranks.gathered(bytes(length)) == [bytes(length)] * ranks.size


@pytest.mark.parametrize("length", [0, 10, 3_000_000])
def test_from_first_is_what_rank_0_gave(ranks: Cluster, length: int) -> None:
    value = {"rank": ranks.rank, "text": "x" * length}
    assert ranks.from_first(value) == {"rank": 0, "text": "x" * length}


@pytest.mark.parametrize("dtype", ["float32", "float64", "uint8", "int64", "bool", "complex64"])
@pytest.mark.parametrize("shape", [(), (1,), (3, 5), (2, 0, 4), (257, 33)], ids=str)
def test_all_gathered_has_every_ranks_bits(ranks: Cluster, shape: tuple[int, ...], dtype: str) -> None:
    array = drawn(ranks.rank, shape, dtype)
    rows = ranks.all_gathered(array)
    assert rows.shape == (ranks.size, *shape)
    assert rows.dtype == dtype
    for rank in range(ranks.size):
        assert rows[rank].tobytes() == drawn(rank, shape, dtype).tobytes()


def test_all_gathered_takes_arrays_that_are_not_contiguous(ranks: Cluster) -> None:
    array = drawn(ranks.rank, (6, 4), "float32")
    rows = ranks.all_gathered(array.T[::2])
    for rank in range(ranks.size):
        np.testing.assert_array_equal(rows[rank].view("int32"), drawn(rank, (6, 4), "int32").T[::2])


@pytest.mark.parametrize("shape", [(), (7,), (1_500_000,), (1000, 700)], ids=str)
def test_arrays_travel_around_the_ring(ranks: Cluster, shape: tuple[int, ...]) -> None:
    """Each rank's goes to the next one; with one rank, to itself."""
    after, before = (ranks.rank + 1) % ranks.size, (ranks.rank - 1) % ranks.size
    received = np.zeros(shape, np.float32)
    mine = drawn(ranks.rank, shape, "float32")
    ranks.wait([ranks.receive(received, before), ranks.send(mine, after)])
    assert received.tobytes() == drawn(before, shape, "float32").tobytes()


def test_messages_are_told_apart_by_their_tags(ranks: Cluster) -> None:
    """Received in another order than sent, from every rank by every rank."""
    received = np.zeros((3, ranks.size, 1000), np.int64)
    sent = np.stack([np.full(1000, 10 * ranks.rank + tag) for tag in range(3)])
    requests = [ranks.receive(received[tag, rank], rank, tag) for tag in (2, 0, 1) for rank in range(ranks.size)]
    requests += [ranks.send(sent[tag], rank, tag) for tag in range(3) for rank in range(ranks.size)]
    ranks.wait(requests)
    for tag in range(3):
        for rank in range(ranks.size):
            assert set(received[tag, rank]) == {10 * rank + tag}


def test_waiting_for_nothing_ends_at_once(ranks: Cluster) -> None:
    ranks.wait([])


def test_arrays_are_received_into_the_memory_that_was_given(ranks: Cluster) -> None:
    """A part of a larger array, as a bucket of the store is; what is beside it stays."""
    memory = np.full(30, -1.0)
    ranks.wait([ranks.receive(memory[10:20], ranks.rank), ranks.send(np.arange(10.0), ranks.rank)])
    np.testing.assert_array_equal(memory, [*[-1.0] * 10, *range(10), *[-1.0] * 10])


def test_memory_in_pieces_is_refused_before_anything_is_sent(ranks: Cluster) -> None:
    with pytest.raises(ValueError, match=r"shape \(3, 4\) and strides \(64, 8\): only contiguous memory travels"):
        ranks.receive(np.zeros((6, 4))[::2], source=0)
    with pytest.raises(ValueError, match="only contiguous memory travels"):
        ranks.send(np.zeros((6, 4)).T, to=0)


def test_ranks_are_numbered_once_and_know_their_host(ranks: Cluster) -> None:
    everyone = ranks.gathered((ranks.rank, ranks.size, ranks.host))
    assert [rank for rank, _, _ in everyone] == list(range(ranks.size))
    assert {size for _, size, _ in everyone} == {ranks.size}
    assert all(host for _, _, host in everyone)


def test_everyone_has_four_devices(ranks: Cluster, everyone, common_path) -> None:
    """What tests under mpirun compute with, and the one folder that they share."""
    (common_path / str(ranks.rank)).touch()
    ranks.gathered(None)
    assert {path.name for path in common_path.iterdir()} == {str(rank) for rank in range(ranks.size)}
    assert len(everyone) * ranks.size == sum(everyone.counts)
    if ranks.size in (1, 2, 4):
        assert sum(everyone.counts) == 4
