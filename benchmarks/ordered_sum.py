"""The sum over devices in the fixed tree, against ``psum`` in any order: milliseconds, of the numbers of ResNet-50.

In vectors of 4 MB, as a step has its gradients.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from jax import lax
from jax.sharding import PartitionSpec
from machine import print_line
from turns import seconds_in_turns

import theano_mgpu as tm
from theano_mgpu.gather.device import all_reduce
from theano_mgpu.mirror import AXIS, mesh_of, on_each

VECTOR = 2**20


def summing(contexts: tm.Contexts, add_up: Callable[[Any], Any]) -> Callable[[list[jax.Array]], Any]:
    mesh = mesh_of(contexts)
    mapped = jax.shard_map(
        lambda rows: [add_up(row) for row in rows],
        mesh=mesh,
        in_specs=PartitionSpec(AXIS),
        out_specs=PartitionSpec(AXIS),
        check_vma=False,
    )
    return jax.jit(mapped)


def main(arguments: argparse.Namespace) -> None:
    everything = tm.contexts("cuda" if arguments.cuda else "cpu:8")
    numbers = [n for n in (2, 4, 8) if n <= len(everything)]
    results = {}
    for n in numbers:
        contexts = everything[:n]
        row = np.random.default_rng(0).standard_normal((n, VECTOR), dtype="float32")
        rows = [jax.device_put(row, on_each(contexts)) for _ in range(-(-arguments.numbers // VECTOR))]
        ways = {
            "ordered": summing(contexts, lambda value, n=n: all_reduce(value, n, AXIS)),
            "unordered": summing(contexts, lambda value: lax.psum(value, AXIS)),
        }
        calls = {way: lambda run=run, rows=rows: jax.block_until_ready(run(rows)) for way, run in ways.items()}
        seconds = seconds_in_turns(calls, arguments.repeats)
        pairs = [a / b for a, b in zip(seconds["ordered"], seconds["unordered"], strict=True)]
        results[n] = {way: round(1e3 * statistics.median(found), 1) for way, found in seconds.items()}
        results[n]["ratio"] = round(statistics.median(pairs), 3)
    ratios = {f"ratio_{n}": found.pop("ratio") for n, found in results.items()}
    print_line(benchmark="ordered_sum", **vars(arguments), **ratios, milliseconds=results)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--numbers", type=int, default=25_557_032, help="ResNet-50's parameters")
    parser.add_argument("--cuda", action="store_true", help="GPUs instead of simulated devices")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.numbers, arguments.repeats = 10**6, 2
    main(arguments)
