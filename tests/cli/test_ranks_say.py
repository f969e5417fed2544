"""The command under mpirun: one voice, one run's folder, and the bits of one process."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from theano_mgpu.training import MetricsFile

ROOT = Path(__file__).parents[2]
MPIEXEC = Path(sys.executable).with_name("mpiexec")

pytestmark = pytest.mark.skipif(not MPIEXEC.exists(), reason='needs an MPI: pip install "theano-mgpu[mpi]"')


def command(count, *words):
    begins = ("OMPI_", "PMI", "PRTE_", "MPI_LOCAL", "SLURM_")
    environment = {name: value for name, value in os.environ.items() if not name.startswith(begins)}
    return subprocess.run(
        [str(MPIEXEC), "-n", str(count), sys.executable, "-m", "theano_mgpu", *map(str, words)],
        env=environment | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=400,
    )


@pytest.mark.parametrize(
    ("words", "status", "said"),
    [
        (["train", "nosuch"], 1, "there is no recipe 'nosuch'"),
        (["train", "--batch-size", "x"], 2, "Error parsing --batch-size"),
        (["train", "--resume", "nosuch"], 1, "'nosuch' is no run's folder"),
        (["train", "--data", "nosuch", "--contexts", "cpu:1"], 1, "'data' is 'nosuch'"),
        (["nosuch"], 2, "there is no command 'nosuch'"),
        (["data", "show", "nosuch"], 1, "'path' is 'nosuch'"),
        (["report"], 2, "Missing from theano-mgpu report"),
    ],
)
def test_a_mistake_is_said_once(words, status, said):
    done = command(2, *words)
    assert done.returncode == status
    assert done.stderr.count(said) == 1, done.stderr
    assert "Traceback" not in done.stderr
    assert "RankError" not in done.stderr


@pytest.mark.slow
def test_a_run_on_ranks_that_is_stopped_and_goes_on_ends_as_one_process_does(run, recipe, tmp_path):
    folder = tmp_path / "run"
    done = command(2, "train", recipe, "--output", folder, "--contexts", "cpu:2", "--max-steps", 3)
    assert done.returncode == 0, done.stderr
    done = command(4, "train", "--resume", folder, "--contexts", "cpu:1", "--max-steps", "None", "--json")
    assert done.returncode == 0, done.stderr
    outcome = json.loads(done.stdout)  # once
    found, expected = (MetricsFile(path / "metrics.jsonl").lines()[-1] for path in (folder, run))
    assert outcome["checksum"] == found["checksum"] == expected["checksum"]
    for name in ("step", "loss", "val_loss", "val_top1", "ema_loss"):
        assert found[name] == expected[name], name
    assert json.loads((folder / "machine.json").read_text())["ranks"][3].startswith("rank 3 (")
    first, second = ((path / "evaluation.npz").read_bytes() for path in (folder, run))
    assert first == second

    shutil.move(folder, tmp_path / "moved")
    done = command(2, "evaluate", "--run", tmp_path / "moved", "--contexts", "cpu:2", "--json")
    assert done.returncode == 0, done.stderr
    assert (
        json.loads(done.stdout)["top1"] == outcome["metrics"]["ema_top1"] or "best" in json.loads(done.stdout)["source"]
    )
