"""JAX's distributed runtime, started over MPI: programs that run on the devices of all ranks together."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from typing import Any

import jax

from theano_mgpu.cluster.communication import Cluster

__all__ = ["require_one_place_each", "start_jax"]

_started: set[Cluster] = set()


def start_jax(cluster: Cluster, simulated: int) -> None:
    """Before JAX makes its first device; ``simulated`` are those that this rank is about to ask for. Once.

    XLA cuts a CPU's sums by the threads of its pool, of which it makes as many as there are cores, or simulated devices
    if those are more. So that ranks get the bits of one process with all the devices, each has as many. NPROC is XLA's
    name for the number, and is left alone where it is set.

    Raises RuntimeError where JAX was used before.
    """
    if cluster in _started:
        return
    everyone = cluster.gathered((simulated, os.cpu_count() or 1, _address() if cluster.rank == 0 else None))
    threads = max(sum(devices for devices, _, _ in everyone), *(cores for _, cores, _ in everyone))
    os.environ.setdefault("NPROC", str(threads))
    try:
        jax.distributed.initialize(everyone[0][2], cluster.size, cluster.rank)
    except RuntimeError as error:
        raise RuntimeError(
            f"contexts: under mpirun, JAX is started for all {cluster.size} ranks together, by the first "
            f"tm.contexts(...), which must come before any other use of JAX in the script: {error}"
        ) from error
    _started.add(cluster)


def require_one_place_each(places: Sequence[tuple[str, str, Sequence[Any]]]) -> None:
    """Of each rank its host, platform, and its devices' places there. Raises ValueError where ranks share a GPU."""
    platforms = {platform for _, platform, _ in places}
    if len(platforms) > 1:
        listed = ", ".join(f"rank {number} has {platform}" for number, (_, platform, _) in enumerate(places))
        raise ValueError(
            f"contexts: all ranks need devices of one kind, but {listed}. Give each the same kind by name."
        )
    holders: dict[tuple[str, Any], int] = {}
    for number, (host, platform, own) in enumerate(places):
        for place in own if platform == "gpu" else ():
            if (first := holders.setdefault((host, place), number)) != number:
                raise ValueError(
                    f"contexts: rank {first} and rank {number} on {host} would both use its GPU {place}. Start as many "
                    'ranks a node as it has GPUs and ask for "cuda", of which each takes its share, or one rank a node.'
                )


def _address() -> str:
    """Of this host, with a port that is free now."""
    with socket.socket() as listener:
        listener.bind(("", 0))
        port = listener.getsockname()[1]
    return f"{_host_address()}:{port}"


def _host_address() -> str:
    """The host's name where others can look it up, as on a cluster; a laptop's own may lead nowhere."""
    try:
        return socket.gethostbyname(socket.gethostname())
    except OSError:
        return "127.0.0.1"
