"""Training ResNet-18 from JPEGs against training it from memory: images/s in turns, while a core is free for decoding.

The steps compute on one core, and a worker decodes on another, as on a machine with a GPU. Both ways go through what
``fit`` uses, ``Prefetch``; the batches from memory are decoded ones of the same size.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
from collections.abc import Iterator
from itertools import count, islice
from pathlib import Path

os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false " + os.environ.get("XLA_FLAGS", "")

import pytensor.tensor as pt
from loader import write_folder
from machine import print_line
from turns import seconds_in_turns

import theano_mgpu as tm
from theano_mgpu.training import Prefetch, Progress


class Repeated:
    """Batches in memory, the same few again and again."""

    def __init__(self, batches: list[tm.data.Batch]) -> None:
        self.batches = batches

    def batches_from(self, cursor: int) -> Iterator[tm.data.Batch]:
        return (self.batches[number % len(self.batches)] for number in count(cursor))


def step_of(arguments: argparse.Namespace) -> tm.Step:
    store = tm.ParameterStore(seed=0)
    size = arguments.image_size
    images = pt.tensor("images", shape=(None, size, size, 3), dtype="uint8")
    labels = pt.vector("labels", dtype="int32")
    logits = tm.models.resnet(store, images, depth=arguments.depth, num_classes=1000, train=True)
    params = store.trainable()
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.01) | store.updates()
    return tm.function([images, labels], tm.average(loss), updates=updates, contexts="cpu:1")


def main(arguments: argparse.Namespace) -> None:
    cores = sorted(os.sched_getaffinity(0))
    with tempfile.TemporaryDirectory() as place:
        os.environ["XDG_CACHE_HOME"] = place  # the scan is not kept
        folder = Path(place) / "data"
        write_folder(folder / "train", arguments.images, (500, 375), seed=0)
        write_folder(folder / "val", 13, (500, 375), seed=1)
        source = tm.data.image_folder(folder, progress=False).train
        with tm.data.pipeline(
            source, arguments.batch, train=True, image_size=arguments.image_size, workers=1
        ) as pipeline:
            os.sched_setaffinity(0, cores[1:])  # the worker's, which begins with the first batch
            decoded = list(islice(pipeline.batches_from(0), 4))
            os.sched_setaffinity(0, cores[:1])
            step = step_of(arguments)
            with Prefetch(step, pipeline) as from_files, Prefetch(step, Repeated(decoded)) as from_memory:
                ways = {
                    "files": from_files.going_on(Progress(cursor=len(decoded))),
                    "memory": from_memory.going_on(Progress()),
                }

                def stepping(way: str) -> None:
                    for given in islice(ways[way], arguments.steps):
                        step(*given.arguments)

                seconds = seconds_in_turns({way: lambda way=way: stepping(way) for way in ways}, arguments.repeats)
    examples = arguments.steps * arguments.batch
    pairs = zip(seconds["memory"], seconds["files"], strict=True)
    print_line(
        benchmark="from_files",
        **vars(arguments),
        images_per_s={way: round(examples / statistics.median(found), 2) for way, found in seconds.items()},
        ratio=round(statistics.median(memory / files for memory, files in pairs), 3),
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--images", type=int, default=520)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--depth", type=int, default=18)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--steps", type=int, default=6, help="of a turn")
    parser.add_argument("--repeats", type=int, default=7, help="turns")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    given = parser.parse_args()
    if given.smoke:
        given.images, given.depth, given.image_size, given.steps, given.repeats = 16, 20, 32, 2, 1
    main(given)
