"""A rank's own part in being watched: it starts its watcher, and leaves a word when it ends."""

from __future__ import annotations

import atexit
import contextlib
import json
import math
import os
import secrets
import select
import socket
import struct
import subprocess
import sys
import tempfile
import traceback
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any

from theano_mgpu.cluster.state import SIZE, State
from theano_mgpu.cluster.verdicts import LIMIT_VARIABLE

if TYPE_CHECKING:
    from theano_mgpu.cluster.communication import Cluster

__all__ = ["watched"]

_DEFAULT_LIMIT = "300"
# The watcher's modules without the package around them, which would import JAX.
_START = """import sys, types
for name, folder in ("theano_mgpu", sys.argv[1]), ("theano_mgpu.cluster", sys.argv[1] + "/cluster"):
    sys.modules[name] = types.ModuleType(name)
    sys.modules[name].__path__ = [folder]
from theano_mgpu.cluster.watcher import main
main()
"""


def watched(cluster: Cluster) -> State:
    """Start this rank's watcher; where to write what it should know. For all ranks to call.

    Raises ValueError on all of them if rank 0's THEANO_MGPU_RANK_TIMEOUT is no number of seconds above 0.
    """
    alive, held = os.pipe()  # held by this process until it is no more
    places = cluster.gathered((_place(), os.getpid(), held))
    one_machine = len({network for (network, _), _, _ in places}) == 1
    listener, task = _hub(one_machine) if cluster.rank == 0 else (None, None)
    task = cluster.from_first(task)
    try:
        limit = float(task["limit"])
    except ValueError:
        limit = math.nan
    if not limit > 0:
        raise ValueError(
            f"{LIMIT_VARIABLE} is {task['limit']!r}. Expected are the seconds that ranks may wait for one that does "
            f"not move, a number above 0; inf: for ever."
        )
    memory = _shared_memory()
    state = State(memory)
    files = {"memory": memory, "end": _end(), "stat": _stat()}
    if listener is not None:
        files["listener"] = listener.detach()
    pipes = _pipes(places, cluster.rank, alive)
    task |= {"limit": limit, "rank": cluster.rank, "size": cluster.size, "host": cluster.host, "process": os.getpid()}
    descriptors = [*(file for file in files.values() if file is not None), *(pipe for _, pipe in pipes)]
    _start(task | files | {"pipes": pipes}, descriptors)
    for descriptor in descriptors:
        os.close(descriptor)
    _leave_word(state)
    return state


def _place() -> tuple[Any, Any]:
    """The same for processes that reach each other by loopback, and for those that see each other.

    A host's name alone is not enough: containers may share it, but not its network.
    """
    spaces = []
    for name in ("net", "pid"):
        try:
            spaces.append(os.stat(f"/proc/self/ns/{name}").st_ino)
        except OSError:
            spaces.append(0)
    return (socket.gethostname(), spaces[0]), (socket.gethostname(), *spaces)


def _pipes(places: list[tuple[Any, int, int]], rank: int, alive: int) -> list[tuple[int, int]]:
    """The ranks of this host, and pipes that close when they end, for the first of them to watch; Linux."""
    here = [other for other, ((_, host), _, _) in enumerate(places) if host == places[rank][0][1]]
    pipes = []
    if rank == here[0] and hasattr(select, "epoll"):
        for other in here:
            _, process, held = places[other]
            with contextlib.suppress(OSError):
                pipes.append((other, os.open(f"/proc/{process}/fd/{held}", os.O_RDONLY | os.O_NONBLOCK)))
    os.close(alive)
    return pipes


def _hub(one_machine: bool) -> tuple[socket.socket, dict[str, Any]]:
    """Where watchers will report to; from here on connections wait there until rank 0's watcher takes them."""
    if one_machine:
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
    elif socket.has_dualstack_ipv6():
        listener = socket.create_server(("", 0), family=socket.AF_INET6, dualstack_ipv6=True, backlog=4096)
    else:
        listener = socket.create_server(("", 0), backlog=4096)
    return listener, {
        "addresses": ["127.0.0.1"] if one_machine else [*_own_addresses(), socket.gethostname()],
        "port": listener.getsockname()[1],
        "key": secrets.token_hex(16),
        "hub": socket.gethostname(),
        "limit": os.environ.get(LIMIT_VARIABLE, _DEFAULT_LIMIT),
    }


def _own_addresses() -> list[str]:
    """This machine's IPv4 addresses: its name is not always one that others know. Linux; elsewhere none."""
    addresses = []
    try:
        import fcntl

        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asked:
            for _, name in socket.if_nameindex():
                try:  # 0x8915: SIOCGIFADDR
                    answer = fcntl.ioctl(asked, 0x8915, struct.pack("256s", name.encode()[:15]))
                except OSError:
                    continue  # an interface without an address
                addresses.append(socket.inet_ntoa(answer[20:24]))
    except (ImportError, OSError):
        return []
    return [address for address in addresses if not address.startswith("127.")]


def _shared_memory() -> int:
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("theano_mgpu")
    else:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.ftruncate(descriptor, SIZE)
    return descriptor


def _end() -> int | None:
    """A file that becomes readable when this process is gone."""
    try:
        return os.pidfd_open(os.getpid())
    except (AttributeError, OSError):  # not Linux, or an old one
        return None


def _stat() -> int | None:
    """What the system says of this process, and while nobody has waited for it, of its end."""
    try:
        return os.open(f"/proc/{os.getpid()}/stat", os.O_RDONLY)
    except OSError:
        return None


def _start(task: dict[str, Any], descriptors: list[int]) -> None:
    package = str(Path(__file__).parents[1])
    try:
        # Nothing else is passed on: the launcher sees a rank's end by files that only the rank holds.
        process = subprocess.Popen(
            [
                sys.executable,
                "-I",
                "-S",
                "-c",
                _START,
                package,
                f"watches process {task['process']}, rank {task['rank']}",
            ],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=descriptors,
            start_new_session=True,
            cwd="/",
        )
        assert process.stdin is not None
        assert process.stdout is not None
        with process.stdin, process.stdout:
            process.stdin.write(json.dumps(task).encode())
            process.stdin.close()
            process.stdout.read(1)  # when it watches: 50 ms
    except OSError as error:
        sys.stderr.write(f"theano_mgpu: no watcher for rank {task['rank']} ({error}): nobody says how it ends.\n")
        return
    process.returncode = 0  # it outlives this process, and Python need not warn of that


def _leave_word(state: State) -> None:
    """At this process's end, and before it if an exception is why."""
    process, before = os.getpid(), sys.excepthook

    def hook(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        try:
            before(kind, error, trace)
        finally:
            # Not KeyboardInterrupt, which comes to all ranks alike, nor what ends a forked child of this process.
            if issubclass(kind, Exception) and os.getpid() == process:
                state.fails(_told(error, trace))

    def goodbye() -> None:
        if os.getpid() == process:
            state.says_goodbye()

    sys.excepthook = hook
    atexit.register(goodbye)


def _told(error: BaseException, trace: TracebackType | None) -> str:
    what = "".join(traceback.format_exception_only(error)).rstrip()
    return f"{what}\n{''.join(traceback.format_tb(trace, limit=-4)).rstrip()}"
