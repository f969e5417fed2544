"""Ranks that are about to run different things are refused, and what differs is named."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

PROGRAM = Path(__file__).with_name("agreements.py")
MPIEXEC = Path(sys.executable).with_name("mpiexec")


@pytest.fixture(scope="module", params=[2, 3], ids=["2-ranks", "3-ranks"])
def told(request: pytest.FixtureRequest) -> dict[str, str]:
    """What is said of each difference; the last of the ranks differs."""
    pytest.importorskip("mpi4py")
    if not MPIEXEC.exists():
        pytest.skip('needs mpiexec beside Python: pip install "theano-mgpu[mpi]"')
    path = os.pathsep.join([str(PROGRAM.parents[2]), os.environ.get("PYTHONPATH", "")])
    ran = subprocess.run(
        [MPIEXEC, "-n", str(request.param), sys.executable, PROGRAM],
        env={**os.environ, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert ran.returncode == 0, ran.stdout + ran.stderr
    return {"ranks": str(request.param), **dict(re.findall(r"^\[(\w+)\] (.*?)(?=^\[|\Z)", ran.stdout, re.M | re.S))}


@pytest.mark.parametrize(
    ("difference", "name", "has", "others_have"),
    [
        ("value", "shards", "'8'", "'4'"),
        ("line", "graph, line 601", "'line 6000'", "'line 600'"),
        ("shorter", "graph, line 1000", "nothing", "'line 999'"),
        ("missing", "pytensor", "nothing", "'3.0.7'"),
        ("long", "pytensor", f"'{'3' * 200}'...", "'3.0.7'"),
        ("empty", "pytensor", "''", "'3.0.7'"),
        ("far", "wide", f"...'{'a' * 100}b{'c' * 99}'...", f"...'{'a' * 100}{'c' * 100}'..."),
        ("two", "shards", "'8'", "'4'"),
        ("two", "pytensor", "'3.0.6'", "'3.0.7'"),
        ("call", "call", "'tm.function()'", "'tm.verify()'"),
    ],
)
def test_what_differs_is_named(told: dict[str, str], difference: str, name: str, has: str, others_have: str) -> None:
    host = re.escape(os.uname().nodename)
    one, others = (
        (f"rank 1 \\({host}\\)", f"rank 0 \\({host}\\)")
        if told["ranks"] == "2"
        else (f"rank 2 \\({host}\\)", f"ranks 0 \\({host}\\), 1 \\({host}\\)")
    )
    line = f"\n  {re.escape(name)}: {re.escape(has)} on {one}, {re.escape(others_have)} on {others}\n"
    assert re.search(line, told[difference]), told[difference]
    assert "Every rank runs the same script" in told[difference]
