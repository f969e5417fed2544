"""Ranks that die, hang or leave under a real mpirun: all stop, one sentence says why, and no process stays."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("rank.py")
MPIEXEC = Path(sys.executable).with_name("mpiexec")
# Seconds; a busy machine takes its time.
DEADLINE = 60


@pytest.fixture
def start(tmp_path: Path) -> Callable[..., subprocess.Popen[str]]:
    """``start(ranks, fault, rank, step, limit)``: mpirun of ``rank.py``."""
    pytest.importorskip("mpi4py")
    if not MPIEXEC.exists():
        pytest.skip('needs mpiexec beside Python: pip install "theano-mgpu[mpi]"')

    def start(ranks: int, fault: str, rank: int = 1, step: int = 5, limit: str = "2") -> subprocess.Popen[str]:
        return subprocess.Popen(
            [MPIEXEC, "-n", str(ranks), sys.executable, PROGRAM, fault, str(rank), str(step)],
            env={**os.environ, "THEANO_MGPU_RANK_TIMEOUT": limit},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    return start


def both_begun(mpirun: subprocess.Popen[str]) -> str:
    """What two ranks print when they begin."""
    assert mpirun.stdout is not None
    return mpirun.stdout.readline() + mpirun.stdout.readline()


def ended(mpirun: subprocess.Popen[str], begun: str = "") -> str:
    """What it printed; every process of the run is gone soon after."""
    try:
        printed = begun + mpirun.communicate(timeout=DEADLINE)[0]
    finally:
        mpirun.kill()
    processes = [int(number) for number in re.findall(r"^process (\d+)$", printed, re.M)]
    assert len(processes) > 1, printed
    left = still_running(processes)
    for _ in range(100):
        if not left:
            break
        time.sleep(0.05)
        left = still_running(processes)
    assert not left
    return printed


def still_running(ranks: list[int]) -> list[str]:
    """Of the ranks and of all watchers on this machine that watched one of them."""
    left = []
    for folder in Path("/proc").iterdir():
        try:
            if folder.name.isdigit() and "Z" not in (folder / "stat").read_text().rsplit(")", 1)[1].split()[0]:
                command = (folder / "cmdline").read_text().split("\0")
                if int(folder.name) in ranks or any(
                    part.startswith(f"watches process {rank},") for part in command for rank in ranks
                ):
                    left.append(f"{folder.name} {command}")
        except OSError:
            continue  # gone meanwhile
    return left


KILLED = "was killed by SIGKILL (where nobody did, by the system for want of memory) in step 5 (computing)."
EXCEPTION = "ended by an exception in step 5 (computing): KeyError: 'no such image'\n"
STOPPED = "has been stopped (by SIGSTOP, or a debugger) for "


@pytest.mark.parametrize(
    ("ranks", "fault", "how"),
    [
        (2, "SIGKILL", KILLED),
        (4, "SIGKILL", KILLED),
        (2, "SIGSEGV", "was ended by signal 11 (Segmentation fault) in step 5 (computing)."),
        (2, "_exit", "ended with status 4, without ending Python, in step 5 (computing)."),
        (2, "exception", EXCEPTION),
        (4, "exception", EXCEPTION),
        (2, "leaves", "reached its end in step 5 (computing), while rank 0"),
        (2, "SIGSTOP", STOPPED),
        (4, "SIGSTOP", STOPPED),
        (2, "sleep", "has not moved for "),
    ],
    ids=lambda value: None if isinstance(value, str) and " " in value else str(value),
)
def test_all_ranks_stop_and_one_sentence_says_why(start, ranks: int, fault: str, how: str) -> None:
    begun = time.monotonic()
    mpirun = start(ranks, fault)
    printed = ended(mpirun)
    assert mpirun.returncode != 0
    sentences = re.findall(r"^theano_mgpu: (.*)", printed, re.M)
    assert len(sentences) == 1, printed
    assert re.match(r"rank 1 \(host \S+, process \d+\) ", sentences[0]), printed
    assert how in printed, printed
    assert "theano-mgpu train --resume runs/here" in printed
    if fault in ("SIGSTOP", "sleep"):
        assert re.search(r"rank [023] \(host \S+, process \d+\) waits for it in step 5 \(gather\)", printed), printed
        assert "THEANO_MGPU_RANK_TIMEOUT" in printed
    assert time.monotonic() - begun < 30


def test_ranks_that_wait_for_each_other_at_different_places_are_told(start) -> None:
    printed = ended(start(2, "elsewhere"))
    assert "rank 0 in step 5 (gather), rank 1 in step 5 (evaluating)" in printed, printed


def test_an_exception_of_all_ranks_is_said_once(start) -> None:
    mpirun = start(2, "everywhere")
    printed = ended(mpirun)
    assert mpirun.returncode != 0
    assert len(re.findall(r"^theano_mgpu: ", printed, re.M)) == 1
    assert "ranks 0, 1 ended by the same exception in step 5 (computing): KeyError: 'no such image'" in printed


def test_a_normal_end_says_nothing(start) -> None:
    mpirun = start(4, "none")
    printed = ended(mpirun)
    assert mpirun.returncode == 0
    assert printed.count("end\n") == 4
    assert "theano_mgpu" not in printed


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_ranks_that_save_when_asked_to_stop_are_let_end(start, number: signal.Signals) -> None:
    mpirun = start(2, "saves", step=0)
    begun = both_begun(mpirun)
    mpirun.send_signal(number)
    printed = ended(mpirun, begun)
    assert printed.count("saved\n") == 2, printed
    assert mpirun.returncode == 143
    assert "theano_mgpu:" not in printed


def test_nothing_stays_when_mpirun_is_killed(start) -> None:
    mpirun = start(2, "until killed", step=0)
    begun = both_begun(mpirun)
    mpirun.kill()
    ended(mpirun, begun)


def test_a_limit_that_is_no_number_is_refused_on_all_ranks(start) -> None:
    printed, _ = start(2, "none", limit="five minutes").communicate(timeout=DEADLINE)
    assert printed.count("ValueError: THEANO_MGPU_RANK_TIMEOUT is 'five minutes'. Expected are the seconds") == 2
