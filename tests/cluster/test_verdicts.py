"""What the hub says, from what it sees: without processes, where seconds cost nothing."""

from __future__ import annotations

import signal

import pytest

from theano_mgpu.cluster.verdicts import SILENCE, Report, finished, sentence

NOW, LIMIT = 1000.0, 300.0


def ranks(*different: dict) -> list[Report]:
    """Each in step 7, computing, all well but for what is given."""
    well = {"host": "a", "process": 10, "step": 7, "phase": "computing"}
    return [Report(rank=rank, **(well | has)) for rank, has in enumerate(different)]


def said(*different: dict, size: int | None = None) -> str | None:
    reports = ranks(*different)
    return sentence(reports, size or len(reports), NOW, LIMIT)


WAITS = {"phase": "gather", "waits": 400.0, "still": 400.0}
KILLED = {"gone": True, "status": int(signal.SIGKILL)}
DONE = {"gone": True, "goodbye": True, "status": 0}


def test_ranks_that_move_are_left_alone() -> None:
    assert said({}, {}) is None
    assert said(WAITS, {"still": 299.0}) is None
    assert said({"still": 4000.0}, {"still": 4000.0}) is None  # nobody waits: a long compilation of all


def test_the_first_of_killed_ranks_is_named() -> None:
    why = said({**KILLED, "when": NOW - 1.0}, {**KILLED, "when": NOW - 1.1, "host": "b", "process": 11})
    assert why is not None
    assert "rank 1 (host b, process 11) was killed by SIGKILL" in why
    assert "in step 7 (computing)" in why
    assert "rank 0" not in why


def test_a_rank_that_ended_by_itself_is_named_before_those_the_launcher_killed() -> None:
    fault = {"gone": True, "status": int(signal.SIGSEGV) | 0x80, "when": NOW - 1.0}
    why = said({**KILLED, "when": NOW - 1.1}, fault, {"gone": True, "status": int(signal.SIGTERM), "when": NOW - 1.2})
    assert why is not None
    assert "rank 1 (host a, process 10) was ended by signal 11 (Segmentation fault)" in why


def test_it_waits_until_it_is_known_who_was_first() -> None:
    assert said({**KILLED, "when": NOW - 0.01}, {}) is None


def test_the_original_exception_is_named_before_those_it_caused() -> None:
    caused = {"error": "theano_mgpu.errors.RankError: rank 1 failed", "when": NOW - 1.1}
    why = said(caused, {"error": "ValueError: bad\n  File x", "when": NOW - 1.0}, caused)
    assert why is not None
    assert "rank 1 (host a, process 10) ended by an exception in step 7 (computing): ValueError: bad\n  File x" in why
    assert "RankError" not in why


def test_one_exception_of_all_ranks_is_said_once() -> None:
    same = {"error": "KeyError: 'x'", "when": NOW - 1.0}
    why = said(same, same)
    assert why is not None
    assert "ranks 0, 1 ended by the same exception" in why


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGHUP])
def test_a_run_that_was_asked_to_end_has_no_fault(number: int) -> None:
    asked = {"gone": True, "status": int(number), "when": NOW - 9.0}
    assert said(asked, {**DONE, "status": 143 << 8}) is None
    assert finished(ranks(asked, {**DONE, "status": 143 << 8}))
    assert said({**asked, "when": NOW - 1.0}, {}) is None
    why = said({}, asked)
    assert why is not None
    assert f"rank 1 (host a, process 10) was ended by signal {int(number)}" in why


def test_ranks_at_their_end_are_finished_and_others_are_not() -> None:
    assert finished(ranks(DONE, DONE))
    assert not finished(ranks(DONE, {}))
    assert not finished(ranks(DONE, KILLED))
    assert not finished(ranks(DONE, {**DONE, "error": "KeyError: 'x'"}))
    assert said(DONE, DONE) is None


@pytest.mark.parametrize(
    ("hangs", "how"),
    [
        ({"still": 350.0}, "has not moved for 350 s in step 7 (computing)"),
        (
            {"still": 400.0, "stopped": True, "step": 8},
            "has been stopped (by SIGSTOP, or a debugger) for 400 s in step 8",
        ),
    ],
    ids=["computing", "stopped"],
)
def test_a_rank_that_hangs_is_named_and_who_waits_for_it(hangs: dict, how: str) -> None:
    why = said(WAITS, {}, hangs)
    assert why is not None
    assert f"rank 2 (host a, process 10) {how}" in why
    assert "rank 0 (host a, process 10) waits for it in step 7 (gather)" in why
    assert "set THEANO_MGPU_RANK_TIMEOUT to more than its 300 seconds" in why


def test_a_stopped_rank_is_named_before_one_that_may_need_it_too() -> None:
    why = said(WAITS, {"still": 500.0}, {"still": 400.0, "stopped": True})
    assert why is not None
    assert "rank 2 (host a, process 10) has been stopped" in why


def test_ranks_that_wait_at_different_places_are_all_named() -> None:
    why = said(WAITS, {**WAITS, "step": 6, "phase": "evaluating"}, WAITS)
    assert why is not None
    assert "at different places for 400 s: ranks 0, 2 in step 7 (gather), rank 1 in step 6 (evaluating)" in why
    assert said(WAITS, WAITS, size=3) is None  # one was never heard of
    assert said(WAITS, {**WAITS, "waits": 1.0, "still": 1.0}) is None  # one has just moved


def test_all_stopped_is_no_hang() -> None:
    """By Ctrl-Z, which stops all ranks: nobody waits while it cannot run."""
    stopped = {"stopped": True, "still": 4000.0}
    assert said(stopped, {**stopped, "phase": "gather"}) is None


def test_a_rank_that_left_is_named_once_nobody_else_can_go_on() -> None:
    why = said({**WAITS, "waits": 6.0}, {"goodbye": True})
    assert why is not None
    assert "rank 1 (host a, process 10) reached its end in step 7 (computing), while rank 0" in why
    assert said({**WAITS, "waits": 4.0}, {"goodbye": True}) is None  # something of it may still arrive
    assert said({**WAITS, "waits": 6.0}, {"goodbye": True}, {}) is None  # which may be who rank 0 waits for
    assert said({**WAITS, "waits": 6.0}, {"goodbye": True}, size=3) is None  # as may one that was never heard of
    assert said({"still": 4000.0}, {**WAITS, "goodbye": True}) is None  # at the end of all: rank 0 writes a report


def test_a_host_that_is_not_heard_of_is_named() -> None:
    assert said({}, {"silent": SILENCE - 1}) is None
    why = said({}, {"silent": SILENCE + 1, "host": "b"})
    assert why is not None
    assert "rank 1 (host b, process 10) has not been heard of for 60 s" in why
    why = said({}, {"lost": True, "when": NOW - 1.0, "host": "b"})
    assert why is not None
    assert "rank 1 (host b, process 10) and its watcher were ended at once, or its host was" in why


def test_it_says_how_to_go_on() -> None:
    why = said({**KILLED, "when": NOW - 1.0, "run": "my runs/a"}, {})
    assert why is not None
    assert why.endswith("theano-mgpu train --resume 'my runs/a'")
