"""The seconds of a step over many nodes, by equations that can be checked by hand; docs/scaling.md derives them.

A message of n bytes takes alpha + n / beta seconds: Hockney, "The communication challenge for MPP: Intel Paragon and
Meiko CS-2", Parallel Computing 20(3), 1994. Here alpha is in two parts, as in LogGP: the wire's latency, which messages
under way share, and what each takes of a processor, which they do not: Alexandrov, Ionescu, Schauser, Scheiman, "LogGP:
Incorporating Long Messages into the LogP Model", SPAA 1995. What is done with the numbers, gamma seconds a byte, counts
what memory reads and writes for it. The collectives and their costs: Thakur, Rabenseifner, Gropp, "Optimization of
Collective Communication Operations in MPICH", Int. J. High Performance Computing Applications 19(1), 2005.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

__all__ = ["Exchange", "Machines", "Point", "Work", "curve", "device_update", "host_update", "step_seconds"]


@dataclass(frozen=True, kw_only=True)
class Machines:
    """What a node is and what connects nodes. Bandwidths are bytes/s, times seconds; all are greater than 0 or 0.

    ``link``: of one node to all others, each way at once. ``latency``: one way between nodes. ``message``: what one
    message takes of a rank's processor. ``bus``: between a device and its host, each way; infinite where devices are
    simulated and have the host's memory. ``inside``: between two devices of a node, each way. ``host_memory``: what a
    node's host reads and writes together as it sums and updates. ``device_memory``: the same of one device.
    """

    link: float
    latency: float = 5e-6
    message: float = 2e-6
    bus: float = 50e9
    inside: float = 450e9
    host_memory: float = 200e9
    device_memory: float = 3e12


@dataclass(frozen=True, kw_only=True)
class Work:
    """What one step is, whatever the number of nodes.

    ``compute``: seconds that a device takes for its part of the batch, measured with a node's others beside it.
    ``examples``: of that part. ``gradients``: bytes of all gradients, P below. ``updated``: bytes that the update rule
    reads and writes for each byte of gradients, besides them: 4 for momentum (parameters and velocities, both ways).
    ``arrays``: in how many the gradients travel, K below. ``spread``: the standard deviation of devices'
    compute, as a part of it. ``hidden``: behind which part of compute the exchange may hide.
    """

    compute: float
    examples: int
    gradients: int
    updated: float = 4.0
    arrays: int = 1
    spread: float = 0.0
    hidden: float = 0.0


@dataclass(frozen=True)
class Exchange:
    """Seconds between the last gradient and the next step, by what is busy.

    ``bus``: gradients to the host and parameters back. ``link``: between nodes. ``inside``: between ranks or devices of
    a node. ``memory``: sums and the update rule. ``messages``: processors, for messages. ``latency``: waiting.
    Nothing overlaps, so that ``total`` is their sum: what overlaps makes a step faster than is said here.
    """

    bus: float = 0.0
    link: float = 0.0
    inside: float = 0.0
    memory: float = 0.0
    messages: float = 0.0
    latency: float = 0.0

    @property
    def total(self) -> float:
        return self.bus + self.link + self.inside + self.memory + self.messages + self.latency


@dataclass(frozen=True)
class Point:
    """A number of devices on the curve: ``seconds`` a step, ``rate`` in examples/s, and ``efficiency``: what part of a
    step is compute, or the rate over that of as many devices that exchange nothing.
    """

    devices: int
    nodes: int
    seconds: float
    rate: float
    efficiency: float
    exchange: Exchange


def host_update(work: Work, machines: Machines, nodes: int, devices_per_node: int, ranks_per_node: int = 1) -> Exchange:
    """Sums and update on the hosts, each of R = nodes * ranks_per_node ranks for its share of the P bytes.

    bus      := 2 P / bus                                        every device by a bus of its own
    link     := 2 r (1 - 1/N) P / link                           pieces to their owners, parameters back to all
    inside   := 2 * 2 r (r - 1)/R P / host_memory                the same within a node: each byte read and written
    memory   := 2 D P / host_memory                              what the buses bring and take, if there are any
              + r (d + 1) P / host_memory                        a rank's d devices summed, if d > 1 and R > 1
              + r (1 + updated/R) P / host_memory                R pieces of P/R (or d of P) summed, and the rule
    messages := 2 K (R - 1) message                              of K arrays, to all others and back
    latency  := (2 + 4 ceil(log2 R)) (latency + message)         both ways, and four small all-gathers of what happened

    N is ``nodes``, D is ``devices_per_node``, r is ``ranks_per_node``, d are devices of a rank. A rank sends
    2 (R - 1)/R P bytes in all: Thakur et al. 2005, section 4 (pairwise exchange for the reduce-scatter, and the
    all-gather). Messages are not blocking, so the latency is waited for once each way.
    """
    ranks = nodes * ranks_per_node
    own = devices_per_node / ranks_per_node
    size = work.gradients
    copies = ranks_per_node * size / machines.host_memory
    carried = 0 if math.isinf(machines.bus) else 2 * own
    summed = own + work.updated if ranks == 1 else (own + 1) * (own > 1) + 1 + work.updated / ranks
    latency = machines.message + (machines.latency if nodes > 1 else 0.0)
    return Exchange(
        bus=2 * size / machines.bus,
        link=2 * ranks_per_node * (1 - 1 / nodes) * size / machines.link,
        inside=2 * 2 * (ranks_per_node - 1) / ranks * copies,
        memory=(carried + summed) * copies,
        messages=2 * work.arrays * (ranks - 1) * machines.message,
        latency=(2 + 4 * math.ceil(math.log2(ranks))) * latency if ranks > 1 else 0.0,
    )


def device_update(work: Work, machines: Machines, nodes: int, devices_per_node: int) -> Exchange:
    """Sums between the devices, n = nodes * devices_per_node of them, and the whole update rule on every device.

    For n a power of two, recursive halving and then doubling. In level l, of log2 n, devices at a distance of 2^l swap
    P / 2^(l+1) bytes, both ways at once; a node's devices share its link:

    inside   := 2 sum P / 2^(l+1) / inside                       levels within a node: 2^l < D
    link     := 2 sum D P / 2^(l+1) / link                       the others: 2 (1 - 1/N) P / link together
    memory   := 3 (1 - 1/n) P / device_memory                    two read and one written for each sum
              + (1 + updated) P / device_memory                  the rule
    messages := 2 log2(n) message
    latency  := 2 log2(N) latency

    For any other n every device gets all gradients, once around a ring, and sums them: n - 1 times P bytes over the
    slower of ``link`` and ``inside``, (n + 1) P of memory.

    D is ``devices_per_node``, N is ``nodes``. Thakur et al. 2005, section 4; the first levels are between neighbours
    (``theano_mgpu.gather.device``), so that between nodes least is sent.
    """
    devices, size = nodes * devices_per_node, work.gradients
    rule = (1 + work.updated) * size / machines.device_memory
    if devices & (devices - 1):
        around = (devices - 1) * size
        slow = nodes > 1 and machines.link < machines.inside
        return Exchange(
            link=around / machines.link if slow else 0.0,
            inside=0.0 if slow else around / machines.inside,
            memory=(devices + 1) * size / machines.device_memory + rule,
            messages=(devices - 1) * machines.message,
            latency=(devices - 1) * machines.latency if nodes > 1 else 0.0,
        )
    levels = devices.bit_length() - 1
    swapped = [size / 2 ** (level + 1) for level in range(levels)]
    within = devices_per_node.bit_length() - 1
    return Exchange(
        link=2 * sum(devices_per_node * n / machines.link for n in swapped[within:]),
        inside=2 * sum(n / machines.inside for n in swapped[:within]),
        memory=3 * sum(swapped) / machines.device_memory + rule,
        messages=2 * levels * machines.message,
        latency=2 * (levels - within) * machines.latency,
    )


def step_seconds(work: Work, exchange: Exchange, devices: int) -> float:
    """compute (1 + spread sqrt(2 ln n)) + max(0, exchange - hidden compute)

    All wait for the slowest. Of n normally distributed times the greatest is expected below mean + deviation
    sqrt(2 ln n): Boucheron, Lugosi, Massart, "Concentration Inequalities", 2013, theorem 2.5.
    """
    slowest = work.compute * (1 + work.spread * math.sqrt(2 * math.log(devices)))
    return slowest + max(0.0, exchange.total - work.hidden * work.compute)


def curve(
    work: Work,
    machines: Machines,
    nodes: int,
    devices_per_node: int,
    ranks_per_node: int = 1,
    *,
    update_on: str = "host",
) -> list[Point]:
    """Points of 1, 2, 4, ... devices up to ``nodes * devices_per_node``, nodes filled one after the other.

    Each device keeps its ``work.examples``, so that the batch grows with the devices (weak scaling).
    """
    points: list[Point] = []
    for count, per_node in _sizes(nodes, devices_per_node):
        if update_on == "host":
            ranks = min(ranks_per_node, per_node)
            exchange = host_update(work, machines, count, per_node, ranks)
        else:
            exchange = device_update(work, machines, count, per_node)
        devices = count * per_node
        seconds = step_seconds(work, exchange, devices)
        rate = devices * work.examples / seconds
        points.append(Point(devices, count, seconds, rate, work.compute / seconds, exchange))
    return points


def _sizes(nodes: int, devices_per_node: int) -> Iterator[tuple[int, int]]:
    """Nodes, and devices on each: powers of two, and all."""
    yield from ((1, 2**level) for level in range((devices_per_node - 1).bit_length()))
    yield from ((2**level, devices_per_node) for level in range((nodes - 1).bit_length()))
    yield nodes, devices_per_node
