"""One training step of ResNet-50 at 224 x 224, momentum and weight decay: images/s, start-up and peak memory.

python benchmarks/resnet50_step.py --devices 2 --batch 8 --update-on host

A step is everything from the batch in numpy to the committed parameters: split, gather and update included. Start-up
is what it takes from an empty graph to the end of the first step.
"""

from __future__ import annotations

import argparse
import time

import numpy as np
import pytensor.tensor as pt
from machine import peak_memory_gb, print_line

import theano_mgpu as tm


def main(arguments: argparse.Namespace) -> None:
    contexts = tm.contexts("cuda" if arguments.cuda else f"cpu:{arguments.devices}")[: arguments.devices]
    size, depth = arguments.image_size, arguments.depth
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((arguments.batch, size, size, 3), dtype="float32")
    classes = rng.integers(0, 1000, arguments.batch, dtype="int32")

    started = time.perf_counter()
    store = tm.ParameterStore(seed=0)
    images = pt.tensor("images", shape=(None, size, size, 3), dtype="float32")
    labels = pt.vector("labels", dtype="int32")
    logits = tm.models.resnet(store, images, depth=depth, num_classes=1000, train=True)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    gradients = tm.updates.apply_weight_decay(tm.grad(loss, params), params, 1e-4)
    updates = tm.updates.momentum(gradients, params, learning_rate=0.1, momentum=0.9) | store.updates()
    graph = time.perf_counter()
    step = tm.function(
        [images, labels],
        tm.average(loss),
        updates=updates,
        contexts=contexts,
        shards=arguments.shards,
        update_on=arguments.update_on,
        precision=arguments.precision,
        nonfinite="skip",  # random images at this rate may diverge; the speed is the same
    )
    lowered = time.perf_counter()
    step(batch, classes)
    first = time.perf_counter()
    seconds = []
    for _ in range(arguments.steps):
        begun = time.perf_counter()
        step(batch, classes)
        seconds.append(time.perf_counter() - begun)
    figures = {
        "images_per_s": round(arguments.batch / min(seconds), 3),
        "step_s": [round(s, 4) for s in seconds],
        "graph_s": round(graph - started, 2),
        "function_s": round(lowered - graph, 2),
        "first_step_s": round(first - lowered, 2),
        "to_first_step_s": round(first - started, 2),
        "max_rss_gb": peak_memory_gb(),
        "host_copy_gb": round(sum(v.get_value(borrow=True).nbytes for v in updates) / 1e9, 3),
    }
    if peaks := [context.memory().get("peak_bytes_in_use") for context in contexts if context.memory()]:
        figures["device_peak_gb"] = round(max(peaks) / 1e9, 3)
    print_line(benchmark="resnet50_step", **vars(arguments), skipped=step.skipped, **figures)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--shards", type=int, help="pieces of a batch, one a device by default")
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--update-on", choices=("host", "device"), default="host")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cuda", action="store_true", help="GPUs instead of simulated devices")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    given = parser.parse_args()
    if given.smoke:
        given.batch, given.image_size, given.depth, given.steps = 2 * given.devices, 32, 18, 2
    main(given)
