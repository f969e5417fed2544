"""Programs under mpirun, started from a process that is no rank."""

from __future__ import annotations

import os
import subprocess
import sysconfig
from collections.abc import Callable
from pathlib import Path

import pytest
from under_mpirun import without_launcher

ROOT = Path(__file__).parents[2]
DEADLINE = 120


@pytest.fixture
def run() -> Callable[..., subprocess.CompletedProcess[str]]:
    """``run(launcher, *command, VARIABLE=value)`` from a process that is no rank, within a deadline; all it printed."""

    def run(*command: str, cwd: Path | None = None, **settings: str) -> subprocess.CompletedProcess[str]:
        path = os.pathsep.join([str(ROOT), str(ROOT / "tests")])
        as_root = {"OMPI_ALLOW_RUN_AS_ROOT": "1", "OMPI_ALLOW_RUN_AS_ROOT_CONFIRM": "1"}
        return subprocess.run(
            command,
            cwd=cwd,
            env=without_launcher(os.environ) | as_root | {"PYTHONPATH": path} | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=DEADLINE,
        )

    return run


@pytest.fixture(scope="session")
def mpirun() -> str:
    """That of MPICH's wheel."""
    program = Path(sysconfig.get_path("scripts"), "mpirun")
    if not program.exists() or not Path(sysconfig.get_path("data"), "lib", "libmpi.so.12").exists():
        pytest.skip('needs MPICH by wheel: pip install "theano-mgpu[mpi]"')
    return str(program)
