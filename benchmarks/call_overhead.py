"""What a call costs by itself: a tiny graph, milliseconds a call, median, on one context and on four."""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import pytensor
import pytensor.tensor as pt
from machine import print_line

import theano_mgpu as tm


def milliseconds(contexts: tm.Contexts, update_on: str, calls: int) -> float:
    """Of a call that trains a linear model of four weights on eight examples."""
    x = pt.matrix("x", dtype="float32")
    w = pytensor.shared(np.ones(4, "float32"), name="w")
    loss = ((x @ w) ** 2).mean()
    step = tm.function(
        [x],
        tm.average(loss),
        updates={w: w - np.float32(1e-3) * tm.grad(loss, w)},
        contexts=contexts,
        update_on=update_on,
    )
    batch = np.ones((8, 4), "float32")
    for _ in range(20):
        step(batch)
    seconds = []
    for _ in range(calls):
        begun = time.perf_counter()
        step(batch)
        seconds.append(time.perf_counter() - begun)
    return round(1e3 * statistics.median(seconds), 3)


def main(arguments: argparse.Namespace) -> None:
    everything = tm.contexts("cuda" if arguments.cuda else "cpu:4")
    numbers = [n for n in (1, 4) if n <= len(everything)]
    print_line(
        benchmark="call_overhead",
        **vars(arguments),
        **{
            f"{update_on}_{n}_ms": milliseconds(everything[:n], update_on, arguments.calls)
            for n in numbers
            for update_on in ("host", "device")
        },
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--calls", type=int, default=500)
    parser.add_argument("--cuda", action="store_true", help="GPUs instead of simulated devices")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    given = parser.parse_args()
    if given.smoke:
        given.calls = 20
    main(given)
