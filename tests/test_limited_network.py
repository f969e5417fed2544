"""The slow networks that benchmarks/scaling.py predicts for are as slow as they say, and leave nothing behind."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
sys.path.append(str(BENCHMARKS))
from limited_network import limited_network, why_not  # noqa: E402

pytestmark = pytest.mark.skipif(why_not() is not None, reason=str(why_not()))

#: Answers one byte, then takes bytes and answers when it has them all.
LISTENER = """
import socket
server = socket.create_server(("10.231.7.1", 5000))
print("ready", flush=True)
connection, _ = server.accept()
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
for _ in range(5):
    connection.sendall(connection.recv(1))
left = 2_000_000
while left:
    left -= len(connection.recv(65536))
connection.sendall(b"x")
"""
CALLER = """
import json, socket, time
connection = socket.create_connection(("10.231.7.1", 5000))
connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
def seconds(data):
    begun = time.perf_counter()
    connection.sendall(data)
    connection.recv(1)
    return time.perf_counter() - begun
print(json.dumps([min(seconds(b"x") for _ in range(5)), seconds(bytes(2_000_000))]))
"""


def namespaces() -> set[str]:
    return {place.name for place in Path("/run/netns").glob("tm*")} if Path("/run/netns").is_dir() else set()


def test_bytes_and_round_trips_take_as_long_as_was_set():
    with (
        limited_network(2, bandwidth=5e6, latency=0.02) as (first, second),
        subprocess.Popen([*first, sys.executable, "-c", LISTENER], stdout=subprocess.PIPE, text=True) as listener,
    ):
        assert listener.stdout is not None
        assert listener.stdout.readline() == "ready\n"
        call = [*second, sys.executable, "-c", CALLER]
        done = subprocess.run(call, capture_output=True, text=True, timeout=60, check=True)
    round_trip, long = json.loads(done.stdout)
    assert 0.04 <= round_trip < 0.2  # other processes may slow it, and nothing may speed it up
    assert 0.38 <= long - round_trip < 2  # a bucketful may leave at once
    assert not {name for name in namespaces() if name.startswith(f"tm{os.getpid()}h")}


@pytest.mark.parametrize("by", [signal.SIGTERM, signal.SIGINT])
def test_a_process_that_is_stopped_takes_its_network_along(by):
    program = (
        "import signal, time; from limited_network import limited_network\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"
        "with limited_network(2, 1e6, 0.0):\n"
        "    print('there', flush=True); time.sleep(60)"
    )
    with subprocess.Popen(
        [sys.executable, "-c", program], cwd=BENCHMARKS, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "there\n"
        own = {name for name in namespaces() if name.startswith(f"tm{process.pid}h")}
        assert len(own) == 2
        process.send_signal(by)
        assert process.wait(30) != 0
    assert not own & namespaces()


def test_what_a_killed_process_left_is_removed_by_the_next():
    program = (
        "import os, signal; from limited_network import limited_network\n"
        "with limited_network(1, 1e6, 0.0):\n"
        "    os.kill(os.getpid(), signal.SIGKILL)"
    )
    with subprocess.Popen([sys.executable, "-c", program], cwd=BENCHMARKS) as process:
        process.wait(30)
    left = {name for name in namespaces() if name.startswith(f"tm{process.pid}h")}
    assert left
    with limited_network(1, 1e6, 0.0):
        assert not left & namespaces()
