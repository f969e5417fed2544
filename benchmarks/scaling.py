"""What the model of docs/scaling.md predicts against what 1, 2 and 4 ranks on this machine take, in one run.

Over memory, over TCP, and as root over networks of namespaces with a limited bandwidth and an added latency
(limited_network.py). Needs mpi4py and its mpiexec. Ranks here share cores, so what they compute, and what the host's
memory gives, is measured by as many ranks side by side; predicted is the exchange. The bandwidth and the latency of the
namespaces are those that were set; of memory and TCP they are measured, by messages from every rank to the next.

The step is that of the library in its messages and its sums, and nothing else: compute is a product of matrices.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from limited_network import limited_network, why_not
from machine import print_line

from theano_mgpu.cluster import Cluster, cluster
from theano_mgpu.scaling import Machines, Work, bandwidth, device_update, host_update, seconds, step_seconds

_BUCKET = 4_000_000  # bytes that are exchanged as one piece of work
_BLOCK = 2**15  # numbers that stay in a core's cache while a rule works on them
_DEADLINE = 300


# What one rank does.


class Rule:
    """Momentum: reads gradient, velocity and parameters, writes the last two."""

    def __init__(self, size: int) -> None:
        self.parameters, self.velocities = np.zeros(size, np.float32), np.zeros(size, np.float32)
        self._scaled = np.empty(_BLOCK, np.float32)

    def __call__(self, gradients: np.ndarray, begin: int) -> None:
        """Apply gradients of parameters from ``begin`` on."""
        for start in range(0, len(gradients), _BLOCK):
            gradient = gradients[start : start + _BLOCK]
            place = slice(begin + start, begin + start + len(gradient))
            velocity, scaled = self.velocities[place], self._scaled[: len(gradient)]
            np.multiply(gradient, np.float32(1e-3), out=scaled)
            velocity *= np.float32(0.9)
            velocity -= scaled
            self.parameters[place] += velocity


class HostUpdate:
    """Every rank sums and updates its share of each bucket; all messages are under way at once."""

    def __init__(self, ranks: Cluster, rule: Rule) -> None:
        self._ranks, self._rule = ranks, rule
        size = len(rule.parameters)
        edges = [*range(0, size, _BUCKET // 4), size]
        self._buckets = [np.linspace(a, b, ranks.size + 1).astype(int) for a, b in pairwise(edges)]
        self._received = [
            [np.empty(pieces[ranks.rank + 1] - pieces[ranks.rank], np.float32) for _ in range(ranks.size)]
            for pieces in self._buckets
        ]

    def __call__(self, gradients: np.ndarray) -> None:
        ranks, parameters, last = self._ranks, self._rule.parameters, []
        others = [(ranks.rank + distance) % ranks.size for distance in range(1, ranks.size)]
        sums = []
        for tag, (pieces, received) in enumerate(zip(self._buckets, self._received, strict=True)):
            requests = [ranks.receive(received[other], other, tag) for other in others]
            last += [ranks.send(gradients[pieces[other] : pieces[other + 1]], other, tag) for other in others]
            sums.append(requests)
        for tag, (pieces, received, requests) in enumerate(zip(self._buckets, self._received, sums, strict=True)):
            back = tag + len(self._buckets)
            last += [ranks.receive(parameters[pieces[other] : pieces[other + 1]], other, back) for other in others]
            ranks.wait(requests)
            own = slice(pieces[ranks.rank], pieces[ranks.rank + 1])
            received[ranks.rank][:] = gradients[own]
            self._rule(_tree_sum(received), own.start)
            last += [ranks.send(parameters[own], other, back) for other in others]
        ranks.wait(last)
        for _ in range(3):  # whether all is finite, the outputs, and how long each took
            ranks.all_gathered(np.zeros(4))


class DeviceUpdate:
    """Recursive halving and doubling, as between devices, and the whole rule on every rank."""

    def __init__(self, ranks: Cluster, rule: Rule) -> None:
        self._ranks, self._rule = ranks, rule
        self._received = np.empty(len(rule.parameters) // 2 + 1, np.float32)

    def __call__(self, gradients: np.ndarray) -> None:
        ranks, levels = self._ranks, (self._ranks.size - 1).bit_length()
        ends = [(0, len(gradients))]
        for level in range(levels):
            begin, end = ends[-1]
            middle = (begin + end) // 2
            upper = bool(ranks.rank >> level & 1)
            mine, theirs = ((middle, end), (begin, middle)) if upper else ((begin, middle), (middle, end))
            received = self._received[: mine[1] - mine[0]]
            self._swap(ranks.rank ^ 1 << level, gradients[slice(*theirs)], received)
            gradients[slice(*mine)] += received
            ends.append(mine)
        for level in reversed(range(levels)):
            (begin, end), mine = ends[level], ends[level + 1]
            theirs = slice(mine[1], end) if mine[0] == begin else slice(begin, mine[0])
            self._swap(ranks.rank ^ 1 << level, gradients[slice(*mine)], gradients[theirs])
        self._rule(gradients, 0)

    def _swap(self, other: int, sent: np.ndarray, received: np.ndarray) -> None:
        self._ranks.wait([self._ranks.receive(received, other), self._ranks.send(sent, other)])


class Alone:
    """A rank without others, as a cluster of one."""

    rank, size = 0, 1

    def all_gathered(self, array: np.ndarray) -> np.ndarray:
        return array[None]

    def wait(self, requests: Sequence[Any]) -> None:
        pass


def _tree_sum(parts: list[np.ndarray]) -> np.ndarray:
    """In place, pairs of neighbours first."""
    while len(parts) > 1:
        for left, right in zip(parts[::2], parts[1::2], strict=False):
            left += right
        parts = parts[::2]
    return parts[0]


def rank_main(arguments: argparse.Namespace) -> None:
    """Measure, and on rank 0 print one line of JSON."""
    ranks: Any = cluster() or Alone()
    rule = Rule(arguments.parameters)
    gradients = np.zeros(arguments.parameters, np.float32)
    matrix = np.ones((768, 768), np.float32)

    def compute() -> None:
        for _ in range(arguments.products):
            matrix @ matrix

    def step(update: Callable[[np.ndarray], None]) -> Callable[[], None]:
        def run() -> None:
            compute()
            update(gradients)

        return run

    host, device = HostUpdate(ranks, rule), DeviceUpdate(ranks, rule)
    works = {
        "compute": compute,
        "update": lambda: rule(gradients, 0),
        "host": step(host),
        "device": step(device),
    }
    # As written before: the first touch of memory takes longer than a message.
    long, short = (np.ones(shape, np.uint8) for shape in ((16, 1_000_000), (100, 8)))
    if ranks.size > 1:
        works |= {
            "long": partial(_to_the_next, ranks, long, long.copy()),
            "many": partial(_to_the_next, ranks, short, short.copy()),
            "one": partial(_to_the_next, ranks, short[:1], short[:1].copy()),
        }
    taken: dict[str, list[float]] = {name: [] for name in works}
    for turn in range(arguments.steps + 1):  # in turns, so that a slow minute slows all alike
        for name, work in works.items():
            ranks.all_gathered(np.zeros(1))
            begun = time.perf_counter()
            work()
            mine = time.perf_counter() - begun
            slowest = ranks.all_gathered(np.array([mine])).max()
            if turn:
                taken[name].append(float(slowest))
    found = {name: statistics.median(seconds) for name, seconds in taken.items()}
    if ranks.size > 1:
        found |= {
            "link": len(long) * long.shape[1] / found["long"],
            "one": found["one"],
            "message": max(0.0, found["many"] - found["one"]) / (len(short) - 1),
        }
    if ranks.rank == 0:
        print(json.dumps(found), flush=True)


def _to_the_next(ranks: Cluster, messages: np.ndarray, received: np.ndarray) -> None:
    """A message for each row, from every rank to the next, all under way at once."""
    after, before = (ranks.rank + 1) % ranks.size, (ranks.rank - 1) % ranks.size
    ranks.wait([*(ranks.receive(row, before) for row in received), *(ranks.send(row, after) for row in messages)])


# What the whole does.


@dataclass(frozen=True)
class Network:
    """How ranks reach each other; ``link`` (bytes/s) and ``latency`` (seconds) where they were set."""

    name: str
    link: float | None = None
    latency: float = 0.0
    tcp: bool = True

    @contextlib.contextmanager
    def places(self, ranks: int) -> Iterator[list[list[str]]]:
        """For each rank, the words before its command."""
        if self.link is None:
            yield [[] for _ in range(ranks)]
        else:
            with limited_network(ranks, self.link, self.latency) as places:
                yield places


def measured(network: Network, ranks: int, words: Sequence[str]) -> dict[str, float]:
    environment = dict(os.environ, OPENBLAS_NUM_THREADS="1", OMP_NUM_THREADS="1", MPIEXEC_TIMEOUT=str(_DEADLINE))
    if network.tcp:  # MPICH: no shared memory between ranks, and libfabric's TCP
        environment |= {"MPIR_CVAR_NOLOCAL": "1", "MPIR_CVAR_CH4_NETMOD": "ofi", "FI_PROVIDER": "tcp"}
    with network.places(ranks) as places:
        command = [_mpiexec()]
        for place in places:
            command += [":"] if len(command) > 1 else []
            command += ["-n", "1", *place, sys.executable, __file__, "--rank", *words]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=_DEADLINE + 30)
    if done.returncode:
        raise RuntimeError(f"{network.name}, {ranks} ranks: status {done.returncode}\n{done.stderr[-3000:]}")
    return json.loads(done.stdout.splitlines()[-1])


def predicted(network: Network, ranks: int, found: dict[str, float], parameters: int) -> dict[str, float]:
    """Seconds of a step with either update, every rank a node of one simulated device."""
    size = 4 * parameters
    memory = 5 * size / found["update"]
    machines = Machines(
        link=network.link or found.get("link", 1.0),
        latency=network.latency or found.get("one", 0.0),
        message=found.get("message", 0.0),
        bus=float("inf"),
        host_memory=memory,
        device_memory=memory,
    )
    work = Work(compute=found["compute"], examples=1, gradients=size, bucket=_BUCKET)
    exchanges = {
        "host": host_update(work, machines, ranks, 1, overlap=False),
        "device": device_update(work, machines, ranks, 1),
    }
    return {update: step_seconds(work, exchange, ranks) for update, exchange in exchanges.items()}


def main(arguments: argparse.Namespace, words: Sequence[str]) -> None:
    networks = [Network("memory", tcp=False), Network("tcp")]
    missing = why_not()
    if missing is None:
        for text in arguments.networks:
            link, latency = text.split(",")
            networks.append(Network(text, bandwidth("networks", link), seconds("networks", latency)))
    else:
        print(f"no networks of namespaces: {missing}", file=sys.stderr)
    rows = []
    print(f"{'network':<16}{'ranks':>6}{'update':>8}{'compute':>10}{'measured':>10}{'predicted':>10}{'ratio':>7}")
    for network in networks:
        for ranks in arguments.ranks:
            if ranks == 1 and network is not networks[0]:
                continue  # nothing is sent
            found = measured(network, ranks, words)
            expected = predicted(network, ranks, found, arguments.parameters)
            for update, value in expected.items():
                row = {"network": network.name, "ranks": ranks, "update": update, "measured_s": found[update]}
                rows.append(row | {"predicted_s": value, "ratio": value / found[update], "compute_s": found["compute"]})
                print(
                    f"{network.name:<16}{ranks:>6}{update:>8}{found['compute']:>10.4f}{found[update]:>10.4f}"
                    f"{value:>10.4f}{value / found[update]:>7.2f}",
                    flush=True,
                )
            if arguments.verbose:
                print({name: f"{value:.3g}" for name, value in found.items()}, file=sys.stderr)
    worst = max(abs(row["ratio"] - 1) for row in rows)
    print_line(benchmark="scaling", parameters=arguments.parameters, rows=rows, worst=round(worst, 3))


def _mpiexec() -> str:
    beside = Path(sys.executable).with_name("mpiexec")
    found = str(beside) if beside.exists() else shutil.which("mpiexec")
    if found is None:
        raise SystemExit('there is no mpiexec; pip install "theano-mgpu[mpi]" brings one')
    return found


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--ranks", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--networks", nargs="*", default=["500Mbit,0us", "200Mbit,2ms"], help="bandwidth,latency")
    parser.add_argument("--parameters", type=int, default=11_689_512, help="of ResNet-18, if not given")
    parser.add_argument("--products", type=int, default=10, help="of matrices, a step's compute")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.smoke:
        given.ranks, given.networks, given.parameters, given.steps = [1, 2], given.networks[1:2], 1_000_000, 2
    if given.rank:
        rank_main(given)
    else:
        same = ("parameters", "products", "steps")
        main(given, [word for name in same for word in (f"--{name}", str(getattr(given, name)))])
