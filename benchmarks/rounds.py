"""Batches of 1, 2, 4, ... shards of one size: examples a second of each, against those of one round.

The devices take turns, so a larger batch should cost what its examples cost: what differs is the sum of the rounds.
"""

from __future__ import annotations

import argparse
import statistics
from functools import partial

import numpy as np
import pytensor.tensor as pt
from machine import print_line
from turns import seconds_in_turns

import theano_mgpu as tm


def step_of(contexts: tm.Contexts, shards: int, arguments: argparse.Namespace) -> tm.Step:
    """A training step of a residual network."""
    store = tm.ParameterStore(seed=0)
    size = arguments.image_size
    images = pt.tensor("images", shape=(None, size, size, 3), dtype="uint8")
    labels = pt.vector("labels", dtype="int32")
    logits = tm.models.resnet(store, images, depth=arguments.depth, num_classes=1000, train=True)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.01, momentum=0.9)
    updates |= store.updates()
    options = {"contexts": contexts, "shards": shards, "update_on": arguments.update_on}
    return tm.function([images, labels], tm.average(loss), updates=updates, **options)


def main(arguments: argparse.Namespace) -> None:
    contexts = tm.contexts("cuda" if arguments.cuda else "cpu:2")[:2]
    counts = [2**i for i in range(arguments.most.bit_length())]
    rng = np.random.default_rng(0)
    size, steps = arguments.image_size, {count: step_of(contexts, count, arguments) for count in counts}
    batches = {}
    for count in counts:
        images = rng.integers(0, 256, (count * arguments.shard, size, size, 3), dtype="uint8")
        batches[count] = images, rng.integers(0, 1000, len(images), dtype="int32")

    ways = {count: partial(steps[count], *batches[count]) for count in counts}
    seconds = seconds_in_turns(ways, arguments.repeats)
    medians = {count: count * arguments.shard / statistics.median(found) for count, found in seconds.items()}
    busy = {count: median for count, median in medians.items() if count >= len(contexts)}  # every device has a shard
    one_round = busy[len(contexts)]
    print_line(
        benchmark="rounds",
        **vars(arguments),
        examples_per_s={count: round(median, 2) for count, median in medians.items()},
        against_one_round={count: round(median / one_round, 3) for count, median in medians.items()},
        slowest_against_one_round=round(min(busy.values()) / one_round, 3),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--most", type=int, default=64, help="shards, a power of two")
    parser.add_argument("--shard", type=int, default=4, help="examples of a shard")
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--update-on", choices=["host", "device"], default="host")
    parser.add_argument("--cuda", action="store_true", help="GPUs instead of simulated devices")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    arguments = parser.parse_args()
    if arguments.smoke:
        arguments.most, arguments.depth, arguments.image_size, arguments.repeats = 4, 20, 16, 1
    main(arguments)
