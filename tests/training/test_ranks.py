"""Training under mpirun: the bits and the metrics of one process, and a run that goes on on other ranks."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import theano_mgpu as tm
from tests.training.network import COUNT

ROOT = Path(__file__).parents[2]
MPIEXEC = Path(sys.executable).with_name("mpiexec")
RUN = {"max_steps": 10, "log_every": 5}
MORE = [(4, "host"), (2, "device")]
MEASURED = ("images_per_s", "step_seconds", "wait", "copy", "compute", "gather", "update", "rank", "slowest")

pytestmark = pytest.mark.skipif(not MPIEXEC.exists(), reason='needs an MPI: pip install "theano-mgpu[mpi]"')


def ranks(count, devices, folder, **settings):
    """The run on so many ranks of so many devices each, or in a process that no mpirun started; what it printed."""
    command = [
        sys.executable,
        str(ROOT / "tests/training/on_ranks.py"),
        str(folder),
        str(devices),
        json.dumps(settings),
    ]
    begins = ("OMPI_", "PMI", "PRTE_", "MPI_LOCAL", "SLURM_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(begins)}
    return subprocess.run(
        command if count is None else [str(MPIEXEC), "-n", str(count), *command],
        env=environment | {"PYTHONPATH": str(ROOT), "NPROC": "8"},
        capture_output=True,
        text=True,
        timeout=240,
    )


def told(folder, count):
    return [json.loads(Path(f"{folder}-rank{rank}.json").read_text()) for rank in range(count)]


def lines(folder):
    found = tm.training.MetricsFile(folder / "metrics.jsonl").lines()
    return [{key: value for key, value in line.items() if not key.startswith(MEASURED)} for line in found]


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """One process with four devices."""
    folder = tmp_path_factory.mktemp("alone") / "run"
    done = ranks(None, 4, folder, **RUN)
    assert done.returncode == 0, done.stderr
    return folder, *told(folder, 1)


@pytest.mark.parametrize(
    ("count", "update_on"), [(2, "host"), *(pytest.param(*more, marks=pytest.mark.slow) for more in MORE)]
)
def test_ranks_train_and_evaluate_to_the_bits_of_one_process(alone, tmp_path, count, update_on):
    whole, expected = alone
    folder = tmp_path / "run"
    done = ranks(count, 4 // count, folder, **RUN, progress=True, update_on=update_on)
    assert done.returncode == 0, done.stderr
    assert lines(folder) == lines(whole)
    assert (folder / "metrics.jsonl").read_text().count("slowest_rank") == len(lines(folder))
    progress = [line for line in done.stderr.splitlines() if line.startswith("step ")]
    assert len(progress) == len({line["step"] for line in lines(folder)})  # rank 0 alone shows them
    found = told(folder, count)
    for of_rank in found:
        for name in ("checksum", "own checksum", "stopped_by", "confusion", "loss", "mistakes"):
            assert of_rank[name] == expected[name], name
        assert of_rank["metrics"] == found[0]["metrics"]

    # Each batch is dealt out: together the ranks make its examples, in its order, and so each of an epoch's once.
    epoch = [str(cursor) for cursor in (8, 16, COUNT)]
    for cursor in epoch:
        parts = [of_rank["made"][cursor] for of_rank in found]
        assert all(len(part) < len(expected["made"][cursor]) for part in parts)
        assert [row for part in parts for row in part] == expected["made"][cursor]
    assert sorted(row for of_rank in found for cursor in epoch for row in of_rank["made"][cursor]) == list(range(COUNT))


def test_a_signal_to_one_rank_stops_all_and_the_run_goes_on_in_one_process(alone, tmp_path):
    whole, expected = alone
    folder = tmp_path / "run"
    done = ranks(2, 2, folder, **RUN, at=[1, 4, "SIGTERM"])
    assert done.returncode not in (0, None)
    assert done.stderr.count("Stopped by SIGTERM after step") == 1, done.stderr
    (checkpoint,) = tm.training.Checkpoints(folder / "checkpoints").paths()[:1]
    assert 2 <= tm.training.read_checkpoint(checkpoint).progress.step < 10
    done = ranks(None, 4, folder, **RUN, resume=True)
    assert done.returncode == 0, done.stderr
    assert told(folder, 1)[0]["checksum"] == expected["checksum"]
    assert lines(folder) == lines(whole)


@pytest.mark.slow
@pytest.mark.parametrize("layouts", [[(4, 1), (2, 2), (1, 4)], [(1, 2), (4, 1), (2, 1)]], ids=str)
def test_a_run_that_is_killed_goes_on_on_other_ranks_to_the_same_bits(alone, tmp_path, layouts):
    whole, expected = alone
    folder = tmp_path / "run"
    for number, (count, devices) in enumerate(layouts[:-1]):
        done = ranks(count, devices, folder, **RUN, resume=True, at=[count - 1, 4, "SIGKILL"])
        assert done.returncode != 0
        assert not (folder.parent / "run-rank0.json").exists(), number
    count, devices = layouts[-1]
    done = ranks(count, devices, folder, **RUN, resume=True)
    assert done.returncode == 0, done.stderr
    assert [of_rank["own checksum"] for of_rank in told(folder, count)] == [expected["checksum"]] * count
    assert lines(folder) == lines(whole)


@pytest.mark.slow
def test_a_hundred_kills_change_nothing(alone, tmp_path):
    """Any rank, in any step: three times a run, each time gone on with by other ranks."""
    whole, expected = alone
    random = np.random.default_rng(0)
    layouts = [(4, 1), (2, 2), (1, 4), (2, 1), (1, 2)]
    killed = 0
    for trial in range(34):
        folder = tmp_path / f"run{trial}"
        order = [layouts[i] for i in random.permutation(len(layouts))[:4]]
        for count, devices in order[:-1]:
            step = int(random.integers(4))  # counted from where it goes on: three times, and ten steps are not over
            rank = int(random.integers(count))
            done = ranks(count if count > 1 else None, devices, folder, **RUN, resume=True, at=[rank, step, "SIGKILL"])
            assert done.returncode != 0, (trial, order, step)
            killed += 1
        count, devices = order[-1]
        done = ranks(count if count > 1 else None, devices, folder, **RUN, resume=True)
        assert done.returncode == 0, done.stderr
        assert told(folder, count)[0]["checksum"] == expected["checksum"], (trial, order)
        assert lines(folder) == lines(whole)
        shutil.rmtree(folder)
    assert killed == 102


def test_what_one_rank_raises_ends_all(tmp_path):
    done = ranks(2, 1, tmp_path / "run", **RUN, at=[1, 2, "error"])
    assert done.returncode != 0
    assert "OSError: batch 2 cannot be read" in done.stderr
    assert "RankError: rank 1 failed with the batch of step 3" in done.stderr


def test_a_checkpoint_that_rank_0_cannot_write_ends_all(tmp_path):
    done = ranks(2, 1, tmp_path / "run", **RUN, at=[0, 5, "no folder"])
    assert done.returncode != 0
    assert "save(): the checkpoint could not be written" in done.stderr
    assert "RankError: rank 0 failed with" in done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ends", "reason", "steps"), [({"stop_at": 6}, "callback", 6), ({"time_limit": 1e-3}, "time_limit", 1)]
)
def test_rank_0_says_when_it_is_enough(tmp_path, ends, reason, steps):
    folder = tmp_path / "run"
    done = ranks(2, 2, folder, **RUN, **ends)
    assert done.returncode == 0, done.stderr
    found = told(folder, 2)
    assert [of_rank["stopped_by"] for of_rank in found] == [reason] * 2
    assert found[0]["own checksum"] == found[1]["own checksum"]
    checkpoint = tm.training.Checkpoints(folder / "checkpoints").newest()
    assert checkpoint.progress.step == steps


def test_a_folder_that_rank_0_cannot_have_ends_all_before_anything_runs(alone, tmp_path):
    folder = tmp_path / "run"
    shutil.copytree(alone[0], folder)
    done = ranks(2, 1, folder, **RUN)
    assert done.returncode != 0
    assert f"FileExistsError: '{folder}' has a run in it" in done.stderr
    assert "RankError: rank 0 failed in the run's folder" in done.stderr
    assert lines(folder) == lines(alone[0])
