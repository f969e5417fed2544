"""Whether mpirun started this process, beside how many others; and MPI, if so."""

from __future__ import annotations

import functools
import os
from typing import Any

from theano_mgpu.cluster.communication import Cluster

__all__ = ["cluster", "ranks_launched"]

# Where launchers write the number of processes: Open MPI, MPICH and Intel MPI (PMI), MVAPICH, Slurm's srun.
_SIZES = ("OMPI_COMM_WORLD_SIZE", "PMI_SIZE", "MV2_COMM_WORLD_SIZE", "SLURM_STEP_NUM_TASKS")


def ranks_launched() -> int:
    """How many processes the launcher started; 1 where none did."""
    for name in _SIZES:
        if os.environ.get(name, "").isdigit():
            return int(os.environ[name])
    return 1


@functools.cache
def cluster() -> Cluster | None:
    """This process and the others that mpirun started; None where it is alone.

    The first call starts MPI, and is for all ranks to make. Raises RuntimeError where mpirun started several processes
    but there is no mpi4py, or one of another MPI than mpirun's, so that each process believes itself alone.
    """
    launched = ranks_launched()
    if launched == 1:
        return None
    mpi = _mpi(launched)
    communicator = mpi.COMM_WORLD
    if communicator.Get_size() != launched:
        raise RuntimeError(
            f"mpirun started {launched} processes, but {_library()} sees {communicator.Get_size()}: mpirun and the MPI "
            f'that mpi4py found are not the same. Use the mpirun of that MPI (of "theano-mgpu[mpi]" it is '
            f"{os.path.join(_scripts(), 'mpirun')}), or have mpi4py use the other one's."
        )
    return Cluster(communicator.Dup(), mpi.Status())


def _mpi(launched: int) -> Any:
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:  # RuntimeError: mpi4py without an MPI library
        raise RuntimeError(
            f"mpirun started {launched} processes, but mpi4py cannot be imported ({error}), so they cannot talk to "
            f'each other. Install it with an MPI by pip install "theano-mgpu[mpi]", or pip install mpi4py where '
            f"there is an MPI; without mpirun it is not needed."
        ) from error
    return MPI


def _library() -> str:
    from mpi4py import MPI

    return str(MPI.Get_library_version()).split("\n")[0].split(",")[0].strip("\0 ")


def _scripts() -> str:
    import sysconfig

    return sysconfig.get_path("scripts")
