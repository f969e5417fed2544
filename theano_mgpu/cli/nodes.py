"""The options of ``theano-mgpu plan`` about many nodes, and what it says of them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from theano_mgpu.drawing.summary import size as in_words
from theano_mgpu.scaling import (
    Exchange,
    Machines,
    Point,
    Work,
    bandwidth,
    curve,
    draw_scaling,
    in_bits,
    in_bytes,
    in_seconds,
    seconds,
)

__all__ = ["Nodes", "scaling"]

_MOST_DEVICES = 2**20
#: Without --latency, that of an InfiniBand or RoCE network.
_LATENCY = "5us"


@dataclass(frozen=True)
class Nodes:
    """Over many nodes: seconds of a step, predicted from compute, bytes and latency. docs/scaling.md has the model."""

    nodes: int | None = None
    """How many nodes. The batch grows with the devices: each keeps as many images as one here."""
    devices_per_node: int | None = None
    """Devices of each node; 1 if not given."""
    ranks_per_node: int | None = None
    """Processes of each node, of which each has as many devices; 1 if not given."""
    link: str | None = None
    """The bandwidth between nodes, each way: 400Gbit, 10Gbit, 1.5GB/s."""
    latency: str | None = None
    """How long a short message is on its way to another node; 5us if not given."""
    step_seconds: float | None = None
    """What a device takes to compute its images of a step, measured elsewhere, on a GPU for instance. If not given, it
    is measured here, on the contexts."""
    memory: str | None = None
    """What a host's memory reads and writes together, 200GB/s; measured here if not given."""
    bus: str | None = None
    """Between a device and its host, each way; 50GB/s (PCIe 5.0 x16) with --step-seconds if not given."""
    inside: str | None = None
    """Between two devices of a node, each way; 450GB/s (NVLink 4) with --step-seconds if not given."""
    device_memory: str | None = None
    """What a device's memory reads and writes together; 3TB/s (HBM3) with --step-seconds if not given."""
    hidden: float = 0.0
    """Behind which part of a device's compute, 0 to 1, the exchange may hide."""
    spread: float = 0.0
    """How much devices' compute varies: its standard deviation over its mean."""
    curve: Path | None = None
    """Draw the scaling curve into this SVG file."""

    def require_sense(self) -> None:
        """Raise ValueError, naming the option, for what is out of range or goes with none of the others."""
        if self.nodes is None:
            given = [field.name for field in fields(self) if getattr(self, field.name) != field.default]
            if given:
                raise ValueError(
                    f"{_option(given[0])} is about many nodes, but --nodes is not given. Add --nodes, 4 for instance, "
                    f"or leave {_option(given[0])} out."
                )
            return
        for name in ("nodes", "devices_per_node", "ranks_per_node"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ValueError(f"{_option(name)} should be 1 or more, got {value}. Say how many there are.")
        devices, ranks = self.on_each
        if self.nodes * devices > _MOST_DEVICES:
            raise ValueError(
                f"--nodes times --devices-per-node should be at most {_MOST_DEVICES:,}, got {self.nodes * devices:,}. "
                "Plan for fewer."
            )
        if devices % ranks:
            raise ValueError(
                f"--ranks-per-node should divide the {devices} devices of a node, got {ranks}. Give 1, or {devices} "
                "for a rank a device."
            )
        if self.link is None and self.nodes > 1:
            raise ValueError(
                f"--link is missing: {self.nodes} nodes need the bandwidth between them. Give that of a node's "
                "network, --link 400Gbit for instance."
            )
        if self.step_seconds is not None and not 0 < self.step_seconds < math.inf:
            raise ValueError(
                f"--step-seconds should be greater than 0, got {self.step_seconds:g}. Give what a device takes for its "
                "images of a step, or leave it out to have it measured."
            )
        if not 0 <= self.hidden <= 1:
            raise ValueError(f"--hidden should be a part from 0 to 1, got {self.hidden:g}. Leave it out for none.")
        if not 0 <= self.spread < math.inf:
            raise ValueError(f"--spread should be 0 or more, got {self.spread:g}. Leave it out for none.")
        if self.curve is not None and self.curve.suffix.lower() != ".svg":
            raise ValueError(
                f"--curve should end in '.svg', the one format that is drawn, got '{self.curve}'. Give "
                f"{self.curve.with_suffix('.svg')}."
            )
        self.machines(1.0, simulated=False)

    @property
    def on_each(self) -> tuple[int, int]:
        """Devices and ranks of a node."""
        return self.devices_per_node or 1, self.ranks_per_node or 1

    def machines(self, memory: float, *, simulated: bool) -> Machines:
        """As the options say, and else GPUs with NVLink; or ``simulated`` devices, which share the host's ``memory``
        (bytes/s) and have no bus. Raises ValueError for texts that are no bandwidths and times."""
        given = {
            _FIELDS[name]: bandwidth(_option(name), text)
            for name in _FIELDS
            if (text := getattr(self, name)) is not None
        }
        host = given.setdefault("host_memory", memory)
        if simulated:
            devices = self.on_each[0]
            given = {"bus": math.inf, "inside": host / 2 / devices, "device_memory": host / devices} | given
        given.setdefault("link", math.inf)  # of one node
        return Machines(latency=seconds("--latency", self.latency or _LATENCY), **given)


#: Options that are bandwidths, and what they are in the model.
_FIELDS = {
    "link": "link",
    "memory": "host_memory",
    "bus": "bus",
    "inside": "inside",
    "device_memory": "device_memory",
}


def scaling(asked: Nodes, work: Work, machines: Machines, network: str) -> tuple[dict[str, Any], str]:
    """The curves of both updates, for machines and for people; drawn, where asked."""
    nodes = asked.nodes or 1
    devices, ranks = asked.on_each
    curves = {update: curve(work, machines, nodes, devices, ranks, update_on=update) for update in ("host", "device")}
    note = _note(asked, work, machines)
    if asked.curve is not None:
        draw_scaling(asked.curve, curves, f"{network} on {_count(nodes, 'node')} of {_count(devices, 'device')}", note)
    values = {
        "nodes": nodes,
        "devices_per_node": devices,
        "ranks_per_node": ranks,
        "measured": asked.step_seconds is None,
        "work": dataclasses.asdict(work),
        "machines": {name: value for name, value in dataclasses.asdict(machines).items() if not math.isinf(value)},
        "curves": {update: [_values(point) for point in points] for update, points in curves.items()},
    }
    return values, _table(asked, curves, note, machines)


def _note(asked: Nodes, work: Work, machines: Machines) -> str:
    source = "measured here" if asked.step_seconds is None else "given"
    between = "" if math.isinf(machines.link) else f"; {in_bits(machines.link)}, {in_seconds(machines.latency)}"
    return (
        f"compute {in_seconds(work.compute)} a step of {_count(work.examples, 'image')} a device ({source}), "
        f"{in_words(work.gradients)} of gradients{between}"
    )


def _table(asked: Nodes, curves: Mapping[str, Sequence[Point]], note: str, machines: Machines) -> str:
    devices, ranks = asked.on_each
    rates = {
        "host memory": machines.host_memory,
        "bus": machines.bus,
        "between a node's devices": machines.inside,
        "device memory": machines.device_memory,
    }
    assumed = ", ".join(f"{name} {in_bytes(rate)}" for name, rate in rates.items() if not math.isinf(rate))
    lines = [
        f"{_count(asked.nodes or 1, 'node')} of {_count(devices, 'device')}, {_count(ranks, 'rank')} a node: predicted",
        f"  {note}",
        f"  {assumed}",
        "",
        f"{'':14}{'update on the host':>35}{'update on the devices':>35}",
        f"{'devices':>7}{'nodes':>7}" + 2 * f"{'step':>12}{'images/s':>11}{'efficiency':>12}",
    ]
    for pair in zip(*curves.values(), strict=True):
        cells = [f"{in_seconds(point.seconds):>12}{point.rate:>11,.0f}{point.efficiency:>12.0%}" for point in pair]
        lines.append(f"{pair[0].devices:>7}{pair[0].nodes:>7}{''.join(cells)}")
    lines += ["", f"besides compute, of {_count(curves['host'][-1].devices, 'device')}"]
    lines += [f"  update on the {update}: {_parts(points[-1].exchange)}" for update, points in curves.items()]
    if asked.curve is not None:
        lines += ["", f"curve: {asked.curve}"]
    return "\n".join(lines)


def _parts(exchange: Exchange) -> str:
    """What takes how long, the longest first."""
    parts = {name: getattr(exchange, name) for name in ("bus", "link", "inside", "memory", "messages", "latency")}
    longest = sorted(((value, name) for name, value in parts.items() if value), reverse=True)
    return ", ".join(f"{name} {in_seconds(value)}" for value, name in longest) or "nothing"


def _values(point: Point) -> dict[str, Any]:
    values = dataclasses.asdict(point)
    values["exchange"]["total"] = point.exchange.total
    return values


def _count(number: int, noun: str) -> str:
    return f"{number:,} {noun}{'s' if number != 1 else ''}"


def _option(name: str) -> str:
    return f"--{name.replace('_', '-')}"
