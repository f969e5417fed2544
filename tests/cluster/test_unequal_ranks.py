"""Ranks with different numbers of devices: every example counts once."""

from __future__ import annotations

import sys
from pathlib import Path

PROGRAM = str(Path(__file__).with_name("unequal.py"))


def test_ranks_of_two_devices_and_of_one_average_over_three(run, mpirun):
    one, two = ([sys.executable, PROGRAM, f"cpu:{devices}"] for devices in (1, 2))
    done = run(mpirun, "-n", "1", *two, ":", "-n", "1", *one)
    assert done.returncode == 0, done.stdout
    for rank in (0, 1):
        for update_on in ("host", "device"):
            expected = f"rank {rank} of (2, 1): 3 shards, right with the update on the {update_on}"
            assert expected in done.stdout, done.stdout
