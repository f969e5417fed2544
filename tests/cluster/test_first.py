"""What rank 0 alone does, and files that it alone reads and writes."""

from __future__ import annotations

import numpy as np
import pytest

import theano_mgpu as tm
from theano_mgpu.cluster import by_first, cluster, together
from theano_mgpu.training import Checkpoints, RunFolder

pytestmark = pytest.mark.ranks


def test_all_ranks_get_what_rank_0_makes(ranks):
    called = []

    def call():
        called.append(ranks.rank)
        return {"large": np.arange(100_000), "turned": np.arange(6).reshape(2, 3).T, "name": "rank 0", "none": None}

    found = by_first(ranks, "as it made it", call)
    assert called == ([0] if ranks.rank == 0 else [])
    np.testing.assert_array_equal(found["large"], np.arange(100_000))
    np.testing.assert_array_equal(found["turned"], [[0, 3], [1, 4], [2, 5]])
    assert (found["name"], found["none"]) == ("rank 0", None)
    assert by_first(None, "", lambda: 7) == 7


def test_what_rank_0_raises_is_known_to_all(ranks):
    def call():
        raise FileNotFoundError("there is no file 'x'")

    expected = (FileNotFoundError, "there is no") if ranks.rank == 0 else (tm.RankError, "rank 0 failed as it read")
    with pytest.raises(expected[0], match=expected[1]):
        by_first(ranks, "as it read", call)
    assert ranks.gathered(ranks.rank) == list(range(ranks.size))  # nobody waits for anything


@pytest.mark.parametrize("nested", [True, False])
def test_what_ends_an_inner_block_ends_the_outer_one_on_all_ranks(ranks, nested):
    """The last rank fails, in the inner block or before it, where the others go in."""
    last = ranks.rank == ranks.size - 1

    def outer():
        with together(ranks, "in the outer block"):
            if last and not nested:
                raise OSError("no more room")
            with together(ranks, "in the inner block"):
                if last:
                    raise OSError("no more room")

    with pytest.raises((OSError, tm.RankError)) as raised:
        outer()
    assert isinstance(raised.value, OSError if last else tm.RankError)
    assert "no more room" in str(raised.value)
    assert ranks.gathered(ranks.rank) == list(range(ranks.size))


def test_a_store_is_saved_by_rank_0_and_loaded_by_all(ranks, common_path):
    stores = [tm.ParameterStore(seed=seed) for seed in (0, 1)]
    for store in stores:
        store.param("weight", (40, 50), init=lambda rng, shape: rng.normal(size=shape))
        store.rng("drop")
    folder = common_path / f"only rank {ranks.rank} sees it"
    if ranks.rank == 0:
        folder.mkdir()
    path = common_path / "only rank 0 sees it" / "weights.safetensors"
    stores[0].save(path if ranks.rank == 0 else folder / "weights.safetensors")
    assert ranks.rank == 0 or not folder.exists()
    stores[1].load(path if ranks.rank == 0 else folder / "weights.safetensors")
    assert stores[1].checksum() == stores[0].checksum()
    with pytest.raises((FileNotFoundError, tm.RankError), match=r"nothing\.safetensors"):
        stores[1].load(common_path / "nothing.safetensors")


def test_a_run_folder_is_rank_0s(ranks, common_path):
    path = common_path / ("run" if ranks.rank == 0 else f"not on rank {ranks.rank}")
    with (
        RunFolder(path, cluster=cluster()) as folder,
        Checkpoints(folder.checkpoints, cluster=cluster()) as checkpoints,
    ):
        folder.require_new()
        assert checkpoints.newest() is None
        assert path.exists() == (ranks.rank == 0)
        error = tm.RunInUseError if ranks.rank == 0 else tm.RankError
        with pytest.raises(error, match="a run is going on"), RunFolder(path, cluster=cluster()):
            pass
