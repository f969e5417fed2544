"""JAX's distributed runtime, started over MPI: programs that run on the devices of all ranks together."""

from __future__ import annotations

import os
import socket
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax

from theano_mgpu.cluster.communication import Cluster

__all__ = ["gpus_of", "place_of", "require_jax", "require_one_place_each", "start_jax"]

# Seconds for a rank to reach the first one.
_PATIENCE = 10

# Of each cluster that was started why JAX's runtime could not be, "" where it was.
_started: dict[Cluster, str] = {}


def start_jax(cluster: Cluster, simulated: int, *, shares_gpus: bool) -> None:
    """Before JAX makes its first device; ``simulated`` are those that this rank is about to ask for. Once.

    With ``shares_gpus`` the ranks of a host share out its GPUs, where it has some.

    XLA cuts a CPU's sums by the threads of its pool, of which it makes as many as there are cores, or simulated devices
    if those are more. So that ranks get the bits of one process with all the devices, each has as many. NPROC is XLA's
    name for the number, and is left alone where it is set.

    The ranks meet at a port of rank 0's host, or at ``JAX_COORDINATOR_ADDRESS`` ("host:port"), where that is set. Where
    they do not, each has its own devices all the same, and ``require_jax`` says why.

    Raises RuntimeError where JAX was used before, and ValueError where a host has more ranks than GPUs.
    """
    if cluster in _started:
        return
    visible = _visible_gpus()
    everyone = cluster.gathered((simulated, os.cpu_count() or 1, cluster.host, visible))
    threads = max(sum(devices for devices, *_ in everyone), *(cores for _, cores, *_ in everyone))
    here = {rank: seen for rank, (_, _, host, seen) in enumerate(everyone) if host == cluster.host}
    # Where a launcher gave each rank GPUs of its own to see, they are shared out already.
    shares_gpus = shares_gpus and len(set(here.values())) == 1
    gpus = gpus_of(list(here).index(cluster.rank), len(here), len(visible), cluster.host) if shares_gpus else None
    hosts = [host for _, _, host, _ in everyone]
    address, problem = cluster.from_first(_address(hosts) if cluster.rank == 0 else None)
    os.environ.setdefault("NPROC", str(threads))
    reason = problem or _reason_not_to_meet(cluster, address)
    try:
        if not reason:
            jax.distributed.initialize(address, cluster.size, cluster.rank, gpus)
    except RuntimeError as error:
        raise RuntimeError(
            f"contexts: under mpirun, JAX is started for all {cluster.size} ranks together, by the first "
            f"tm.contexts(...), which must come before any other use of JAX in the script: {error}"
        ) from error
    _started[cluster] = reason


def require_jax(cluster: Cluster, step: str) -> None:
    """Raises RuntimeError where programs cannot run on the devices of all ranks together."""
    if reason := _started[cluster]:
        raise RuntimeError(
            f'{step}: update_on="device" and synchronised batch norm take averages between the devices of all '
            f"{cluster.size} ranks, for which JAX's distributed runtime could not start ({reason}). See that the ranks "
            f"reach rank 0's host, or set JAX_COORDINATOR_ADDRESS to an address of it, host:port, where they do; "
            f'update_on="host" works without.'
        )


def _reason_not_to_meet(cluster: Cluster, address: str) -> str:
    """The first rank's whose way to the address is barred, or nothing. JAX would end the process of such a rank."""
    host, _, port = address.rpartition(":")
    problem = ""
    with socket.socket() as listener:
        if cluster.rank == 0:
            listener.bind(("", int(port)))
            listener.listen()
        cluster.gathered("listening")
        try:
            socket.create_connection((host, int(port)), _PATIENCE).close()
        except OSError as error:
            problem = f"rank {cluster.rank}: {address} does not answer: {error}"
        problems = cluster.gathered(problem)
    return next(filter(None, problems), "")


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


def gpus_of(position: int, ranks: int, gpus: int, host: str) -> list[int] | None:
    """Which of a host's GPUs are for one of its ranks; None where it is the only one, or there are none."""
    if ranks == 1 or gpus == 0:
        return None
    if ranks > gpus:
        raise ValueError(
            f"contexts: mpirun started {ranks} ranks on {host}, which has {gpus} GPUs; each rank needs at least one. "
            f'Start at most {gpus} there, or ask for simulated devices: tm.contexts("cpu:1").'
        )
    return list(range(position * gpus // ranks, (position + 1) * gpus // ranks))


def place_of(device: jax.Device) -> Any:
    """Which of its host's GPUs a device is, however few of them this process may see."""
    number, visible = device.local_hardware_id, _visible_gpus()
    return visible[number] if device.platform == "gpu" and number is not None and number < len(visible) else number


def _visible_gpus() -> tuple[str, ...]:
    """Those that this process may see, found without JAX, which takes all that it sees."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return tuple(name.strip() for name in visible.split(",") if name.strip())
    numbers = [path.name[6:] for path in Path("/dev").glob("nvidia[0-9]*") if path.name[6:].isdigit()]
    return tuple(sorted(numbers, key=int))


def _address(hosts: Sequence[str]) -> tuple[str, str]:
    """Of this host, the first of ``hosts``, with a port that is free now; and what was in the way, or nothing.

    The environment may have one. A port in use ends JAX's process.
    """
    host, _, port = os.environ.get("JAX_COORDINATOR_ADDRESS", "").rpartition(":")
    try:
        with socket.socket() as listener:
            listener.bind(("", int(port or 0)))
            port = listener.getsockname()[1]
    except (OSError, ValueError) as error:
        return "", f"rank 0: no port {port} to meet at: {error}"
    return f"{host or _host_address(hosts)}:{port}", ""


def _host_address(hosts: Sequence[str]) -> str:
    """Where the others reach this host, the first: on the way to one of them, for its own name may lead to loopback."""
    other = next((host for host in hosts if host != hosts[0]), None)
    if other is None:
        return "127.0.0.1"
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            sender.connect((other, 9))  # sends nothing: the system chooses the address to send from
            return str(sender.getsockname()[0])
    except OSError:
        return socket.gethostname()
