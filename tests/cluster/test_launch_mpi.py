"""Each launcher with the MPI that matches it, and what is said where none does."""

from __future__ import annotations

import os
import shutil
import sys

import pytest

import theano_mgpu
from theano_mgpu.cluster import ranks_launched

# Only ``theano_mgpu.cluster``: the whole package takes each of these processes a second more.
ALONE = f"""
import sys, types
package = types.ModuleType("theano_mgpu")
package.__path__ = {theano_mgpu.__path__}
sys.modules["theano_mgpu"] = package
"""
PROGRAM = f"""{ALONE}
from theano_mgpu.cluster import cluster, ranks_launched
ranks = cluster()
print(f"<{{ranks_launched()}} {{ranks and ranks.gathered(ranks.rank)}}>", flush=True)
"""
OTHERS = {"mpirun.openmpi": ["--oversubscribe"], "mpirun.mpich": []}


@pytest.fixture(params=["wheel", *OTHERS])
def launcher(request: pytest.FixtureRequest) -> list[str]:
    """mpirun of the wheel, and Debian's where they are."""
    if request.param == "wheel":
        return [request.getfixturevalue("mpirun")]
    if not (program := shutil.which(request.param)):
        pytest.skip(f"there is no {request.param}")
    return [program, *OTHERS[request.param]]


def test_ranks_talk_to_each_other_under_each_mpirun(run, mpirun, launcher: list[str]) -> None:
    """With one installation of mpi4py and MPICH by wheel."""
    ended = run(*launcher, "-n", "2", sys.executable, "-c", PROGRAM)
    assert ended.stdout.count("<2 [0, 1]>") == 2, ended.stdout
    assert ended.returncode == 0


def test_one_process_under_mpirun_is_alone_and_needs_no_mpi4py(run, launcher: list[str]) -> None:
    ended = run(*launcher, "-n", "1", sys.executable, "-c", f"import sys; sys.modules['mpi4py'] = None\n{PROGRAM}")
    assert "<1 None>" in ended.stdout
    assert ended.returncode == 0


def test_mpi4py_missing_under_mpirun_is_said(run, mpirun) -> None:
    ended = run(mpirun, "-n", "2", sys.executable, "-c", f"import sys; sys.modules['mpi4py'] = None\n{PROGRAM}")
    assert "mpirun started 2 processes, but mpi4py cannot be imported" in ended.stdout
    assert 'pip install "theano-mgpu[mpi]"' in ended.stdout
    assert ended.returncode != 0


NO_LIBRARY = f"""{ALONE}
import sysconfig
sysconfig.get_path = lambda name: "/nowhere"  # where a wheel of the library would be
from theano_mgpu.cluster import launch
launch._MPICH = launch._Mpi("MPICH", "libmpi.so.0", launch._MPICH.remedy)
launch.cluster()
"""


def test_no_library_of_the_launchers_mpi_is_said(run) -> None:
    """As with mpi4py's wheel, but MPICH as Debian alone has it."""
    pytest.importorskip("mpi4py")
    ended = run(sys.executable, "-c", NO_LIBRARY, PMI_SIZE="2")
    assert "mpirun started 2 processes, but mpi4py does not find MPICH's library" in ended.stdout
    assert "pip install mpich" in ended.stdout
    assert "/nowhere/lib/libmpi.so.0" in ended.stdout


def test_another_mpi_than_the_launchers_is_said(run, mpirun) -> None:
    """Each process would train alone: here one that was started by nobody."""
    ended = run(sys.executable, "-c", PROGRAM, SLURM_STEP_NUM_TASKS="2")
    assert "srun started 2 processes, but MPICH Version: 5" in ended.stdout
    assert "sees 1: srun gave them no MPI" in ended.stdout
    assert "--mpi=pmi2" in ended.stdout


@pytest.mark.skipif(not shutil.which("mpirun.openmpi"), reason="needs a second MPI")
def test_users_choice_of_another_mpi_is_named(run, mpirun) -> None:
    ended = run(mpirun, "-n", "2", sys.executable, "-c", PROGRAM, MPI4PY_LIBMPI="libmpi.so.40")
    assert "mpirun is MPICH's, but MPI4PY_LIBMPI=libmpi.so.40 chose another MPI. Unset it." in ended.stdout


# As seen: MPICH's hydra inside a Slurm job, Open MPI's mpirun, srun --mpi=pmix, sbatch, salloc's shell, no launcher.
@pytest.mark.parametrize(
    ("environment", "ranks"),
    [
        ({"PMI_SIZE": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_NTASKS": "4"}, 4),
        ({"OMPI_COMM_WORLD_SIZE": "3", "PMIX_RANK": "0", "SLURM_NTASKS": "4"}, 3),
        ({"SLURM_STEP_NUM_TASKS": "2", "PMIX_RANK": "1"}, 2),
        ({"SLURM_NTASKS": "4", "SLURM_NPROCS": "4", "SLURM_PROCID": "0"}, 1),
        ({"SLURM_NTASKS": "4", "SLURM_STEP_NUM_TASKS": "1", "SLURM_STEP_ID": "4294967290"}, 1),
        ({"PMI_SIZE": ""}, 1),
        ({}, 1),
    ],
)
def test_ranks_are_counted_by_the_launchers_own_variable(
    environment: dict[str, str], ranks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in [name for name in os.environ if name.startswith(("OMPI_", "PMI", "SLURM_", "MV2_"))]:
        monkeypatch.delenv(name)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert ranks_launched() == ranks


THREADS = f"""{ALONE}
import threading, warnings
warnings.simplefilter("always")
from theano_mgpu.cluster import cluster
ranks = cluster()

def in_a_thread():
    try:
        print(f"<other thread {{ranks.gathered(ranks.rank)}}>", flush=True)
    except RuntimeError as error:
        print(f"<{{error}}>", flush=True)

thread = threading.Thread(target=in_a_thread, name="trainer")
thread.start()
thread.join()
print(f"<main thread {{ranks.gathered(ranks.rank)}}>", flush=True)
"""


@pytest.mark.parametrize("level", ["single", "funneled", "serialized", "multiple"])
def test_thread_level_below_multiple_is_said_and_kept(run, mpirun, level: str) -> None:
    ended = run(mpirun, "-n", "2", sys.executable, "-c", THREADS, MPI4PY_RC_THREAD_LEVEL=level)
    assert ended.returncode == 0, ended.stdout
    assert ended.stdout.count("<main thread [0, 1]>") == 2
    assert ended.stdout.count("RuntimeWarning: MPI gives thread level") == (0 if level == "multiple" else 2)
    if level in ("single", "funneled"):
        assert f"RuntimeWarning: MPI gives thread level {level}; steps run on the main thread only" in ended.stdout
        assert f"a step in thread 'trainer', but MPI gives thread level {level}: only the main thread" in ended.stdout
        assert "other thread" not in ended.stdout
    else:
        assert ended.stdout.count("<other thread [0, 1]>") == 2
