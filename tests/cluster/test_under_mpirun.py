"""How tests fail under mpirun: by an error of one rank, a hang or a death, but for all ranks, and with a text."""

from __future__ import annotations

import sys
import textwrap
from pathlib import Path

import pytest

TESTS = """
import os, signal, time
import pytest
from theano_mgpu.cluster import cluster

ranks = cluster()

def test_passes(): assert ranks.gathered(ranks.rank) == [0, 1]
"""


@pytest.fixture
def two_ranks(run, mpirun, tmp_path: Path):
    """Run a file of tests, whose first one passes, under mpirun."""

    def two_ranks(tests: str, **settings: str):
        (tmp_path / "test_it.py").write_text(TESTS + textwrap.dedent(tests))
        options = ("-p", "under_mpirun", "-p", "no:cacheprovider", "-p", "no:xdist")
        return run(mpirun, "-n", "2", sys.executable, "-m", "pytest", *options, "test_it.py", cwd=tmp_path, **settings)

    return two_ranks


def test_what_happens_on_one_rank_happens_to_all_and_is_reported_once(two_ranks) -> None:
    ended = two_ranks(
        """
        @pytest.fixture(params=["set-up", "call", "tear-down"])
        def part(request):
            assert ranks.rank == 0 or request.param != "set-up", "set-up of rank 1"
            yield request.param
            assert ranks.rank == 0 or request.param != "tear-down", "tear-down of rank 1"

        def test_fails(part):
            print("said by rank", ranks.rank)
            assert ranks.rank == 0 or part != "call", "call of rank 1"

        def test_is_skipped_by_one():
            if ranks.rank == 1:
                pytest.skip("not here")

        def test_is_skipped_by_all(): pytest.skip("nowhere")

        @pytest.mark.xfail
        def test_fails_as_expected(): assert False

        def test_the_ranks_are_still_together(): assert ranks.gathered(ranks.rank) == [0, 1]
        """
    )
    assert ended.returncode != 0
    assert ended.stdout.count("test session starts") == 1
    assert "2 failed, 3 passed, 1 skipped, 1 xfailed, 2 errors" in ended.stdout
    for part in ("set-up", "call", "tear-down"):
        assert f"{part} of rank 1" in ended.stdout
    assert "said by rank 1" in ended.stdout
    assert "rank 1: skipped" in ended.stdout


def test_ranks_that_pass_end_well(two_ranks) -> None:
    ended = two_ranks("")
    assert ended.returncode == 0, ended.stdout
    assert "1 passed" in ended.stdout.splitlines()[-1]


def test_failure_that_leaves_the_others_waiting_ends_all(two_ranks) -> None:
    ended = two_ranks(
        """
        def test_one():
            assert ranks.rank == 0, "before the others were told"
            ranks.gathered("waits for rank 1")
        """,
        RANKS_GRACE="1",
    )
    assert ended.returncode != 0
    assert "rank 1 of 2: test_it.py::test_one (call) failed, and not on all ranks" in ended.stdout
    assert "before the others were told" in ended.stdout


def test_a_test_that_hangs_ends_with_its_stack(two_ranks) -> None:
    ended = two_ranks("def test_hangs(): time.sleep(1000 * ranks.rank)", RANKS_DEADLINE="3")
    assert ended.returncode != 0
    assert "Timeout" in ended.stdout
    assert "in test_hangs" in ended.stdout


def test_the_death_of_a_rank_is_a_failure(two_ranks) -> None:
    ended = two_ranks("def test_dies(): assert ranks.rank == 0 or os.kill(os.getpid(), signal.SIGKILL)")
    assert ended.returncode != 0


def test_ranks_with_different_tests_are_refused(two_ranks) -> None:
    ended = two_ranks("if ranks.rank == 1:\n    def test_more(): pass\n")
    assert ended.returncode != 0
    assert "rank 1 and rank 0 collected different tests" in ended.stdout
    assert "test_more" in ended.stdout
