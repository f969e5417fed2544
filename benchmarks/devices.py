"""The same work, in the same number of shards, on 1, 2, 4 and 8 devices: milliseconds a step, and how far apart.

Simulated devices share one processor, so the times should be equal: what differs is the cost of having devices.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from functools import partial

import numpy as np
import pytensor.tensor as pt
from machine import print_line
from turns import seconds_in_turns

import theano_mgpu as tm


def step_over(contexts: tm.Contexts, shards: int, depth: int) -> Callable[..., object]:
    """A training step of a residual network for 32 x 32 images."""
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, 32, 32, 3), dtype="float32")
    labels = pt.vector("labels", dtype="int32")
    logits = tm.models.resnet(store, images, depth=depth, num_classes=10, train=True)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.01, momentum=0.9)
    updates |= store.updates()
    return tm.function([images, labels], tm.average(loss), updates=updates, contexts=contexts, shards=shards)


def main(arguments: argparse.Namespace) -> None:
    everything = tm.contexts("cuda" if arguments.cuda else "cpu:8")
    numbers = [n for n in (1, 2, 4, 8) if n <= len(everything)]
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((arguments.batch, 32, 32, 3), dtype="float32")
    classes = rng.integers(0, 10, arguments.batch, dtype="int32")
    steps = {n: step_over(everything[:n], arguments.shards, arguments.depth) for n in numbers}
    calls = {n: partial(step, batch, classes) for n, step in steps.items()}
    seconds = seconds_in_turns(calls, arguments.steps)
    medians = {n: statistics.median(s) for n, s in seconds.items()}
    print_line(
        benchmark="devices",
        **vars(arguments),
        step_ms={n: round(1e3 * median, 2) for n, median in medians.items()},
        fastest_ms={n: round(1e3 * min(s), 2) for n, s in seconds.items()},
        spread=round(max(medians.values()) / min(medians.values()) - 1, 3),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--shards", type=int, default=8)
    parser.add_argument("--depth", type=int, default=20)
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--cuda", action="store_true", help="GPUs instead of simulated devices")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    given = parser.parse_args()
    if given.smoke:
        given.batch, given.steps, given.depth = 16, 2, 20
    main(given)
