"""Hosts on one machine behind a slow network: a Linux network namespace for each, nothing of which leaves the machine.

The kernel limits what each host sends (a token bucket, ``tc``), and a process here delays what passes between them (TUN
devices), for not every kernel has ``netem``. Root is needed. All is gone when the ``with`` block ends, however it does.
"""

from __future__ import annotations

import collections
import contextlib
import fcntl
import os
import re
import select
import shutil
import signal
import struct
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

__all__ = ["limited_network", "why_not"]

_TUNSETIFF, _IFF_TUN, _IFF_NO_PI = 0x400454CA, 0x0001, 0x1000
# Packets large enough for a relay written in Python: 4,000 a second are 1 Gbit/s.
_MTU = 32_000
_BURST = 64_000  # bytes that may leave at once, at least a packet


def why_not() -> str | None:
    """What is missing for networks of one's own, or None."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "network namespaces need Linux and root"
    missing = [name for name in ("ip", "tc", "unshare") if shutil.which(name) is None]
    if missing:
        return f"there is no command {' or '.join(missing)} (of iproute2 and util-linux)"
    return None if os.path.exists("/dev/net/tun") else "there is no /dev/net/tun"


@contextlib.contextmanager
def limited_network(hosts: int, bandwidth: float, latency: float) -> Iterator[list[list[str]]]:
    """``hosts`` namespaces, each of which sends at most ``bandwidth`` bytes/s; a packet takes ``latency`` seconds more.

    Gives for each host the words to put before a command that is to run there. Raises OSError where a namespace or a
    device cannot be made, with what ``ip`` or ``tc`` said.
    """
    _remove_left_over()
    prefix = f"tm{os.getpid()}"
    names = [f"{prefix}h{host}" for host in range(hosts)]
    with contextlib.ExitStack() as stack:
        # A terminated process leaves by the same way.
        before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
        stack.callback(signal.signal, signal.SIGTERM, before)
        devices = []
        for host, name in enumerate(names):
            _call("ip", "netns", "add", name)
            stack.callback(_call, "ip", "netns", "del", name)
            devices.append(_tun(name))
            stack.callback(os.close, devices[-1])
            _call("ip", "link", "set", name, "netns", name)
            _call("ip", "-n", name, "addr", "add", f"{_address(host)}/24", "dev", name)
            _call("ip", "-n", name, "link", "set", name, "mtu", str(_MTU), "txqueuelen", "2000", "up")
            _call("ip", "-n", name, "link", "set", "lo", "up")
            rate = f"{round(8 * bandwidth)}bit"
            bucket = ("tbf", "rate", rate, "burst", str(_BURST), "limit", str(2**25))
            _call("tc", "-n", name, "qdisc", "add", "dev", name, "root", *bucket)
        words = [sys.executable, __file__, str(latency), *map(str, devices)]
        relay = subprocess.Popen(words, pass_fds=devices, stdout=subprocess.PIPE, stdin=subprocess.DEVNULL)
        stack.enter_context(relay)
        stack.callback(relay.kill)
        assert relay.stdout is not None
        relay.stdout.readline()  # it is there
        # Each host is called by its address, so that others find it under its name.
        named = ("unshare", "--uts", "sh", "-c", 'hostname "$0" && exec "$@"')
        yield [["ip", "netns", "exec", name, *named, _address(host)] for host, name in enumerate(names)]


def _remove_left_over() -> None:
    """Namespaces of processes that were killed, and could not."""
    places = Path("/run/netns")
    for name in [place.name for place in places.iterdir()] if places.is_dir() else []:
        found = re.fullmatch(r"tm(\d+)h\d+", name)
        if found and not Path("/proc", found[1]).exists():
            _call("ip", "netns", "del", name)


def _address(host: int) -> str:
    return f"10.231.7.{host + 1}"


def _tun(name: str) -> int:
    """A device whose packets this process reads and writes; it stays so in another namespace."""
    device = os.open("/dev/net/tun", os.O_RDWR | os.O_NONBLOCK)
    fcntl.ioctl(device, _TUNSETIFF, struct.pack("16sH22x", name.encode(), _IFF_TUN | _IFF_NO_PI))
    return device


def _relay(devices: Sequence[int], latency: float) -> None:
    """Pass each packet to the host that it is for, ``latency`` seconds after it came; until killed."""
    os.nice(-20)  # a network does not wait for those who compute
    parent = os.getppid()
    print("there", flush=True)
    waiting: collections.deque[tuple[float, int, bytes]] = collections.deque()  # one latency: in order of their due
    while os.getppid() == parent:
        wait = 1.0 if not waiting else max(0.0, waiting[0][0] - time.monotonic())
        readable, _, _ = select.select(devices, [], [], wait)
        now = time.monotonic()
        for device in readable:
            with contextlib.suppress(BlockingIOError):
                for _ in range(16):
                    packet = os.read(device, 65_536)
                    if packet[0] >> 4 == 4 and packet[16:19] == bytes((10, 231, 7)) and packet[19] <= len(devices):
                        waiting.append((now + latency, devices[packet[19] - 1], packet))
        now = time.monotonic()
        while waiting and waiting[0][0] <= now:
            _, device, packet = waiting.popleft()
            with contextlib.suppress(BlockingIOError):  # a full queue drops, as in a switch
                os.write(device, packet)


def _call(*words: str) -> None:
    done = subprocess.run(words, capture_output=True, text=True, timeout=30)
    if done.returncode:
        raise OSError(f"'{' '.join(words)}' failed: {(done.stderr or done.stdout).strip()}")


if __name__ == "__main__":  # the process that passes packets on
    _relay([int(number) for number in sys.argv[2:]], float(sys.argv[1]))
