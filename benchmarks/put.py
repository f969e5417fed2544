"""Batches sent ahead by ``step.put`` against batches that each step sends itself: milliseconds a step, in turns.

``put_ms`` is what ``put`` takes until it returns. Transfer and computation overlap where a device has memory and an
engine for copies of its own; simulated devices share the cores that copy.
"""

from __future__ import annotations

import argparse
import statistics
import time

import numpy as np
import pytensor.tensor as pt
from machine import print_line
from turns import seconds_in_turns

import theano_mgpu as tm


def step_of(contexts: tm.Contexts, arguments: argparse.Namespace) -> tm.Step:
    """A training step of a residual network; images come as float32, as a host's preprocessing leaves them."""
    store = tm.ParameterStore(seed=0)
    size = arguments.image_size
    images = pt.tensor("images", shape=(None, size, size, 3), dtype="float32")
    labels = pt.vector("labels", dtype="int32")
    logits = tm.models.resnet(store, images, depth=arguments.depth, num_classes=1000, train=True)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.01, momentum=0.9)
    updates |= store.updates()
    options = {"contexts": contexts, "update_on": arguments.update_on}
    return tm.function([images, labels], tm.average(loss), updates=updates, **options)


def main(arguments: argparse.Namespace) -> None:
    contexts = tm.contexts("cuda" if arguments.cuda else f"cpu:{arguments.devices}")[: arguments.devices]
    step = step_of(contexts, arguments)
    rng = np.random.default_rng(0)
    size = arguments.image_size
    images = rng.standard_normal((arguments.batch, size, size, 3), dtype="float32")
    batch = images, rng.integers(0, 1000, arguments.batch, dtype="int32")
    putting = []

    def each_its_own() -> None:
        for _ in range(arguments.steps):
            step(*batch)

    def ahead() -> None:
        waiting = step.put(*batch)
        for _ in range(arguments.steps):
            begun = time.perf_counter()
            following = step.put(*batch)
            putting.append(time.perf_counter() - begun)
            step(waiting)
            waiting = following

    seconds = seconds_in_turns({"sent_by_the_step": each_its_own, "put_ahead": ahead}, arguments.repeats)
    step_ms = {way: 1e3 * statistics.median(found) / arguments.steps for way, found in seconds.items()}
    pairs = zip(seconds["put_ahead"], seconds["sent_by_the_step"], strict=True)
    print_line(
        benchmark="put",
        **vars(arguments),
        batch_mb=round(sum(array.nbytes for array in batch) / 1e6, 1),
        step_ms={way: round(found, 2) for way, found in step_ms.items()},
        put_ms=round(1e3 * statistics.median(putting), 2),
        ratio=round(statistics.median(ahead / own for ahead, own in pairs), 3),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--image-size", type=int, default=64)
    parser.add_argument("--steps", type=int, default=5, help="of a turn")
    parser.add_argument("--repeats", type=int, default=5, help="turns")
    parser.add_argument("--update-on", choices=["host", "device"], default="host")
    parser.add_argument("--cuda", action="store_true", help="GPUs instead of simulated devices")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    given = parser.parse_args()
    if given.smoke:
        given.batch, given.depth, given.image_size, given.steps, given.repeats = 4, 20, 16, 2, 1
    main(given)
