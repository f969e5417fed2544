"""What the model of docs/scaling.md predicts against what 1, 2 and 4 ranks on this machine take, in one run.

Over memory, over TCP, and as root over networks of namespaces with a limited bandwidth and an added latency
(limited_network.py). Needs mpi4py and its mpiexec. Ranks here share cores: so compute, and what the host takes for
sums and the rule, are those of as many ranks side by side, each with a step of its own that exchanges nothing, in turns
with the step over all ranks. Predicted is the exchange. Bandwidth and latency of the namespaces are those that were
set; of memory and TCP they are measured, by messages from every rank to the next. The bandwidth for an update on the
devices is what their own library, gloo, reaches there, in swaps between neighbours.
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
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytensor.tensor as pt
from jax import lax
from jax.sharding import PartitionSpec
from limited_network import limited_network, why_not
from machine import print_line

import theano_mgpu as tm
from theano_mgpu.cluster import Cluster
from theano_mgpu.mirror import AXIS, mesh_of, on_each
from theano_mgpu.scaling import Machines, Work, bandwidth, device_update, host_update, seconds, step_seconds

_DEADLINE = 300
# The first step compiles, the second finds memory that the first has left.
_WARM_UP = 2


# What one rank does.


def rank_main(arguments: argparse.Namespace) -> None:
    """Measure, and on rank 0 print one line of JSON."""
    contexts = tm.contexts("cpu:1")
    ranks = contexts.cluster
    count = len(contexts.ranks)
    batch = np.ones((count * arguments.examples, arguments.units), np.float32)
    labels = np.zeros(len(batch), np.int32)
    local = training(arguments, contexts.local, "host")
    works: dict[str, Callable[[], object]] = {
        "local": lambda: local(batch[: arguments.examples], labels[: arguments.examples])
    }
    for update_on in arguments.updates:
        step = training(arguments, contexts, update_on)
        works[update_on] = partial(step, batch, labels)
    half_a_layer = arguments.units**2 // 2  # of its numbers
    # As written before: the first touch of memory takes longer than a message.
    long, short = (np.ones(shape, np.uint8) for shape in ((16, 1_000_000), (100, 8)))
    if ranks is not None:
        works |= {
            "long": partial(_to_the_next, ranks, long, long.copy()),
            "many": partial(_to_the_next, ranks, short, short.copy()),
            "one": partial(_to_the_next, ranks, short[:1], short[:1].copy()),
        }
        if "device" in arguments.updates:
            works["swap"] = swapping(contexts.everywhere, half_a_layer)
    taken: dict[str, list[float]] = {name: [] for name in (*works, "compute", "update")}
    for turn in range(_WARM_UP + arguments.steps):  # in turns, so that a slow minute slows all alike
        for name, work in works.items():
            _slowest(ranks, 0.0)
            begun = time.perf_counter()
            work()
            mine = {name: time.perf_counter() - begun}
            if name == "local":
                parts = local.seconds
                mine |= {
                    "compute": parts["copy"] + parts["compute"],
                    "update": parts["gather"] + parts["update"],
                }
            for measured, value in mine.items():
                slowest = _slowest(ranks, value)
                if turn >= _WARM_UP:
                    taken[measured].append(slowest)
    found = {name: statistics.median(values) for name, values in taken.items()}
    if ranks is not None:
        found |= {
            "link": len(long) * long.shape[1] / found["long"],
            "message": max(0.0, found["many"] - found["one"]) / (len(short) - 1),
        }
    if "swap" in found:
        found["device_link"] = 4 * half_a_layer / found["swap"]
    if contexts.rank == 0:
        print(json.dumps(found), flush=True)


def training(arguments: argparse.Namespace, contexts: tm.Contexts, update_on: str) -> Any:
    """A step of a network of dense layers, with momentum: few operations to compile, and many numbers to exchange."""
    store = tm.ParameterStore(seed=0)
    hidden = x = pt.matrix("x", shape=(None, arguments.units), dtype="float32")
    labels = pt.vector("labels", dtype="int32")
    for layer in range(arguments.layers):
        hidden = tm.nn.relu(tm.layers.dense(store, f"hidden{layer}", hidden, units=arguments.units))
    loss = tm.nn.softmax_cross_entropy(tm.layers.dense(store, "out", hidden, units=10), labels).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=1e-3, momentum=0.9)
    return tm.function([x, labels], tm.average(loss), updates=updates, contexts=contexts, update_on=update_on)


def swapping(contexts: tm.Contexts, numbers: int) -> Callable[[], object]:
    """Half of a layer's gradients between neighbours, as the first level of a sum between devices sends it."""
    others = [(i, i ^ 1) for i in range(len(contexts))]
    each = PartitionSpec(AXIS)
    swap = jax.jit(
        jax.shard_map(
            lambda row: lax.ppermute(row, AXIS, others),
            mesh=mesh_of(contexts),
            in_specs=each,
            out_specs=each,
            check_vma=False,
        )
    )
    halves = jax.make_array_from_callback(
        (len(contexts), numbers), on_each(contexts), lambda index: np.ones((1, numbers), np.float32)
    )
    return lambda: swap(halves).block_until_ready()


def _slowest(ranks: Cluster | None, value: float) -> float:
    """The greatest of all ranks' values; a barrier."""
    return value if ranks is None else float(ranks.all_gathered(np.array([value])).max())


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
    environment = dict(os.environ, MPIEXEC_TIMEOUT=str(_DEADLINE))
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


def predicted(network: Network, ranks: int, found: dict[str, float], size: int) -> dict[str, float]:
    """Seconds of a step with either update, every rank a node of one simulated device."""
    memory = 5 * size / found["update"]
    machines = Machines(
        link=network.link or found.get("link", 1.0),
        latency=network.latency or found.get("one", 0.0),
        message=found.get("message", 0.0),
        bus=float("inf"),
        host_memory=memory,
        device_memory=memory,
    )
    work = Work(compute=found["compute"], examples=1, gradients=size)
    exchanges = {
        "host": host_update(work, machines, ranks, 1),
        "device": device_update(work, replace(machines, link=found.get("device_link", machines.link)), ranks, 1),
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
    rows: list[dict[str, Any]] = []
    size = 4 * arguments.units * (arguments.units + 1) * arguments.layers
    print(f"{'network':<16}{'ranks':>6}{'update':>8}{'compute':>10}{'measured':>10}{'predicted':>10}{'ratio':>7}")
    for network in networks:
        for ranks in arguments.ranks:
            if ranks == 1 and network is not networks[0]:
                continue  # nothing is sent
            found = measured(network, ranks, words)
            expected = predicted(network, ranks, found, size)
            for update in arguments.updates:
                value = expected[update]
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
    print_line(benchmark="scaling", parameters=size // 4, rows=rows, worst=round(worst, 3))


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
    parser.add_argument("--units", type=int, default=2048, help="of a layer")
    parser.add_argument("--layers", type=int, default=3)
    parser.add_argument("--examples", type=int, default=128, help="of a rank")
    parser.add_argument("--updates", nargs="+", default=["host"], choices=["host", "device"])
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--verbose", action="store_true")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    parser.add_argument("--rank", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.smoke:
        given.ranks, given.networks, given.units, given.steps = [1, 2], given.networks[1:2], 512, 2
    if given.rank:
        rank_main(given)
    else:
        same = ("units", "layers", "examples", "steps")
        words = [word for name in same for word in (f"--{name}", str(getattr(given, name)))]
        main(given, [*words, "--updates", *given.updates])
