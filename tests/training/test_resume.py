"""A run that was stopped, however, goes on to the bits and the metrics of one that was never stopped."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

import theano_mgpu as tm
from tests.training.network import PulledPlug, network, pull_the_plug, train

ROOT = Path(__file__).parents[2]
#: Lines of metrics lie between checkpoints, and behind the last one when a run is stopped.
RUN = {"max_steps": 10, "evaluated": True, "log_every": 5}
MEASURED = ("images_per_s", "step_seconds", "wait", "copy", "compute", "gather", "update")


def metrics(run):
    """All lines; of what is measured, which says nothing about bits, only that it is there."""
    lines = tm.training.MetricsFile(run / "metrics.jsonl").lines()
    return [{key: value if key not in MEASURED else value > 0 for key, value in line.items()} for line in lines]


@pytest.fixture(scope="module")
def unbroken(eight, tmp_path_factory):
    """Ten steps, three epochs and a step, without a stop."""
    run = tmp_path_factory.mktemp("unbroken")
    _, fitted = train(run, eight, **RUN)
    assert fitted.stopped_by == "max_steps"
    return fitted.checksum, metrics(run)


@pytest.mark.parametrize("stops", [[5], [3, 4, 5], [5, 5, 5]])
def test_a_run_without_its_plug_ends_with_the_same_bits_on_other_devices(eight, tmp_path, unbroken, stops):
    for devices, stop in zip((2, 8, 1), stops, strict=False):
        with pytest.raises(PulledPlug):
            train(tmp_path, eight[:devices], resume=True, **RUN, at=(stop, pull_the_plug))
    made, fitted = train(tmp_path, eight[:4], resume=True, **RUN)
    assert (fitted.checksum, metrics(tmp_path)) == unbroken
    assert fitted.checksum == made.store.checksum()


def test_metrics_end_with_the_checksum(unbroken):
    checksum, lines = unbroken
    assert [line["step"] for line in lines] == [3, 5, 6, 9, 10, 10]
    assert [line for line in lines if "final" in line or "checksum" in line] == lines[-1:]
    assert (lines[-1]["final"], lines[-1]["checksum"]) == (True, checksum)
    assert {"step", "epoch", "loss", "top1"} <= set(lines[-1])
    assert {"val_top1", "val_loss", "ema_top1"} <= set(lines[0])
    assert "val_top1" not in lines[1]


def test_a_finished_run_that_goes_on_does_nothing_and_a_longer_one_goes_further(eight, tmp_path, unbroken):
    train(tmp_path, eight, **{**RUN, "max_steps": 6})
    short = metrics(tmp_path)
    _, fitted = train(tmp_path, eight, **{**RUN, "max_steps": 6}, resume=True)
    assert fitted.progress.step == 6
    assert metrics(tmp_path) == short
    _, fitted = train(tmp_path, eight, resume=True, **RUN)
    assert (fitted.checksum, metrics(tmp_path)) == unbroken


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_saves_and_says_how_to_go_on(eight, tmp_path, unbroken, capfd, number):
    before = signal.getsignal(number)

    def signalled_at_5(line):
        if line["step"] == 5:
            os.kill(os.getpid(), number)

    with pytest.raises(tm.training.Interrupted) as caught:
        train(tmp_path, eight, **RUN, callbacks=[signalled_at_5])
    assert caught.value.code == 128 + number
    assert "after step 5" in caught.value.sentence
    assert f"train --resume {tmp_path}" in capfd.readouterr().err
    assert signal.getsignal(number) is before
    _, fitted = train(tmp_path, eight[:2], resume=True, **RUN)
    assert (fitted.checksum, metrics(tmp_path)) == unbroken


def test_a_time_limit_saves_and_is_no_end(eight, tmp_path, unbroken):
    _, fitted = train(tmp_path, eight, **RUN, time_limit=1e-6)
    assert (fitted.stopped_by, fitted.progress.step) == ("time_limit", 1)
    assert not metrics(tmp_path)
    _, fitted = train(tmp_path, eight, resume=True, **RUN)
    assert (fitted.checksum, metrics(tmp_path)) == unbroken


def test_a_damaged_newest_checkpoint_is_passed_over_to_the_same_bits(eight, tmp_path, unbroken):
    with pytest.raises(PulledPlug):
        train(tmp_path, eight, **RUN, at=(5, pull_the_plug))
    newest = max((tmp_path / "checkpoints").glob("step-*"))
    assert newest.name == "step-00000004.safetensors"
    newest.write_bytes(newest.read_bytes()[:-1])
    with pytest.warns(RuntimeWarning, match=r"step-00000004.* is damaged.*before it is taken"):
        _, fitted = train(tmp_path, eight, resume=True, **RUN)
    assert (fitted.checksum, metrics(tmp_path)) == unbroken


def test_another_number_of_shards_is_said(eight, tmp_path):
    train(tmp_path, eight, max_steps=2)
    with pytest.warns(UserWarning, match="run with 8 shards, this step has 4"):
        train(tmp_path, eight, max_steps=4, resume=True, made=network(eight, shards=4))


def test_with_the_update_on_the_devices_too(eight, tmp_path, unbroken):
    for devices, stop in ((8, 5), (2, None)):
        made = network(eight[:devices], update_on="device")
        if stop:
            with pytest.raises(PulledPlug):
                train(tmp_path, eight[:devices], made=made, at=(stop, pull_the_plug), **RUN)
        else:
            _, fitted = train(tmp_path, eight[:devices], made=made, resume=True, **RUN)
    assert fitted.checksum == unbroken[0]


def test_the_loss_scale_goes_on(eight, tmp_path):
    made = network(eight, precision="float16")
    made.step.counts = {"loss_scale": 4096.0, "good_steps": 1998, "skipped": 3}
    train(tmp_path, eight, max_steps=2, made=made)
    assert made.step.loss_scale == 8192
    again = network(eight, precision="float16")
    train(tmp_path, eight, max_steps=2, resume=True, made=again)
    assert again.step.counts == made.step.counts == {"loss_scale": 8192.0, "good_steps": 0, "skipped": 3}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
def test_a_process_that_was_stopped_goes_on_to_the_same_bits(eight, tmp_path, number):
    """At no chosen moment."""
    settings = json.dumps({"max_steps": 10**6, "resume": True, "evaluated": True, "checkpoint_every": 1})
    command = [sys.executable, "-m", "tests.training.network", str(tmp_path), "2", settings]
    checkpoints = tmp_path / "checkpoints"
    with subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) as process:
        try:
            deadline = time.monotonic() + 120
            while not (checkpoints / "step-00000004.safetensors").exists() and not list(
                checkpoints.glob("step-*[5-9]*")
            ):
                assert process.poll() is None, process.stderr.read()
                assert time.monotonic() < deadline
                time.sleep(0.005)
            process.send_signal(number)
            _, errors = process.communicate(timeout=120)
        finally:
            process.kill()
    assert process.returncode == (-9 if number == signal.SIGKILL else 143)
    assert number == signal.SIGKILL or f"train --resume {tmp_path}" in errors
    assert "Traceback" not in errors
    with tm.training.Checkpoints(checkpoints) as kept:
        step = kept.newest().progress.step
    assert step >= 4
    _, whole = train(tmp_path / "whole", eight, max_steps=step + 2, evaluated=True, checkpoint_every=1)
    _, fitted = train(tmp_path, eight, max_steps=step + 2, evaluated=True, checkpoint_every=1, resume=True)
    assert fitted.checksum == whole.checksum
    assert metrics(tmp_path) == metrics(tmp_path / "whole")
