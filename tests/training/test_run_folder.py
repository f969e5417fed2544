"""One run a folder, and metrics in whole lines."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

import theano_mgpu as tm
from theano_mgpu.training import Means, MetricsFile, RunFolder, StopSignals, Stopwatch

HOLDER = "import sys, theano_mgpu as tm\nwith tm.training.RunFolder(sys.argv[1]): print('held', flush=True); input()"


def test_two_runs_in_one_folder_are_refused(tmp_path):
    with RunFolder(tmp_path), pytest.raises(tm.RunInUseError, match=f"process {os.getpid()} on .*another folder"):
        RunFolder(tmp_path).__enter__()
    with RunFolder(tmp_path):
        pass


def test_a_running_process_is_named_and_a_killed_one_leaves_no_lock(tmp_path):
    command = [sys.executable, "-c", HOLDER, str(tmp_path)]
    root = Path(tm.__file__).parents[1]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, cwd=root) as process:
        try:
            assert process.stdout.readline() == "held\n"
            with pytest.raises(tm.RunInUseError, match=f"a run is going on .process {process.pid} on"):
                RunFolder(tmp_path).__enter__()
        finally:
            process.kill()
    assert (tmp_path / "lock").read_text().startswith("process")  # what it wrote is still there
    with RunFolder(tmp_path):
        pass


def test_a_folder_that_cannot_be_made_is_said(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OSError, match=r"cannot write to the run's folder '.*file/run'.*Give another folder"):
        RunFolder(tmp_path / "file" / "run").__enter__()


def test_lines_are_cut_off_where_a_run_goes_on(tmp_path):
    metrics = MetricsFile(tmp_path / "metrics.jsonl")
    metrics.append({"step": 1, "loss": float("nan")})
    position = metrics.position
    metrics.append({"step": 2, "loss": 0.5})
    again = MetricsFile(metrics.path)
    assert again.lines() == [{"step": 1, "loss": None}, {"step": 2, "loss": 0.5}]
    again.truncate(position)
    assert again.lines() == [{"step": 1, "loss": None}]
    again.truncate(10**6)  # a longer file was lost with the power: nothing is made up
    assert metrics.path.stat().st_size == position


def test_a_line_that_was_cut_short_is_written_over(tmp_path):
    path = tmp_path / "metrics.jsonl"
    path.write_text('{"step": 1}\n{"step": 2, "lo' + "x" * 100)
    metrics = MetricsFile(path)
    assert metrics.lines() == [{"step": 1}]
    metrics.append({"step": 2})
    assert path.read_text() == '{"step": 1}\n{"step": 2}\n'


def test_means_are_over_examples_and_go_on_from_their_sums():
    means = Means()
    means.add({"loss": 1.0}, 3)
    again = Means(means.sums)
    again.add({"loss": 5.0}, 1)
    assert again.taken() == {"loss": 2.0}
    assert again.taken() == {}
    assert means.taken() == {"loss": 1.0}


def test_a_stopwatch_says_what_it_measured_and_nothing_else():
    watch = Stopwatch()
    assert watch.timed("step", int, "7") == 7
    watch.timed("wait", len, [])
    watch.count(8)
    watch.count(8)
    taken = watch.taken()
    assert taken["images_per_s"] == pytest.approx(16 / (2 * taken["step_seconds"] + 2 * taken["wait"]))
    assert [taken[part] for part in ("copy", "compute", "gather", "update")] == [None] * 4
    assert watch.taken()["images_per_s"] is None
    for seconds in (1.0, 3.0):
        watch.count(8, {"copy": seconds, "compute": 5.0})
    taken = watch.taken()
    assert [taken[part] for part in ("copy", "compute", "gather", "update")] == [2.0, 5.0, None, None]
    assert watch.taken()["copy"] is None


@pytest.fixture
def python_sees_ctrl_c():
    """A shell's background process, as the tests may be one, ignores SIGINT from the start."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("python_sees_ctrl_c")
def test_a_second_signal_does_what_it_always_did():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        assert signals.received == signal.SIGINT
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
