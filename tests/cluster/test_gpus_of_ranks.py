"""Which of a host's GPUs a rank takes, from what it can see."""

from __future__ import annotations

import pytest

from theano_mgpu.cluster.xla import gpus_of, require_one_place_each


def test_ranks_of_a_host_share_out_its_gpus():
    assert [gpus_of(rank, 4, 4, "a") for rank in range(4)] == [[0], [1], [2], [3]]
    assert [gpus_of(rank, 2, 5, "a") for rank in range(2)] == [[0, 1], [2, 3, 4]]


def test_one_rank_has_all_and_simulated_devices_need_none():
    assert gpus_of(0, 1, 4, "a") is None
    assert gpus_of(1, 2, 0, "a") is None


def test_more_ranks_than_gpus_are_refused():
    with pytest.raises(ValueError, match=r"4 ranks on a, which has 2 GPUs.*at most 2 there"):
        gpus_of(0, 4, 2, "a")


def test_two_ranks_do_not_share_a_gpu():
    require_one_place_each([("a", "gpu", ["0"]), ("a", "gpu", ["1"]), ("b", "gpu", ["0"])])
    with pytest.raises(ValueError, match="rank 0 and rank 2 on a would both use its GPU 1"):
        require_one_place_each([("a", "gpu", ["0", "1"]), ("b", "gpu", ["1"]), ("a", "gpu", ["1"])])


def test_all_ranks_have_devices_of_one_kind():
    with pytest.raises(ValueError, match="rank 0 has gpu, rank 1 has cpu"):
        require_one_place_each([("a", "gpu", ["0"]), ("b", "cpu", [0])])
    require_one_place_each([("a", "cpu", [0]), ("a", "cpu", [0])])
