"""What a run ran on, as the system says by other ways."""

from __future__ import annotations

import json
import os
import platform
import re
from pathlib import Path

import jax

import theano_mgpu as tm


def test_a_machine_is_described(contexts):
    described = tm.report.describe_machine(contexts)
    assert json.loads(json.dumps(described)) == described
    assert described["cores"] == len(os.sched_getaffinity(0))
    kibibytes = int(re.search(r"MemTotal:\s+(\d+) kB", Path("/proc/meminfo").read_text())[1])
    assert described["memory"] == f"{kibibytes / 2**20:.1f} GiB"
    assert (described["python"], described["jax"]) == (platform.python_version(), jax.__version__)
    assert described["theano_mgpu"] == tm.__version__
    assert described["devices"] == [f"cpu{number} (cpu)" for number in range(len(contexts))]
    assert described["processor"]


def test_no_devices_are_made_for_it():
    assert "devices" not in tm.report.describe_machine()
