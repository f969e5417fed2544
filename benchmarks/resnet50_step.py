"""One training step of ResNet-50 at 224 x 224 with momentum and weight decay: images/s and seconds to the first step.

python benchmarks/resnet50_step.py --devices 2 --batch 8 --update-on host
"""

from __future__ import annotations

import argparse
import json
import resource
import time

import numpy as np
import pytensor.tensor as pt

import theano_mgpu as tm


def main(arguments: argparse.Namespace) -> dict[str, object]:
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
        nonfinite="skip",  # random images at this rate diverge after some steps; their speed is the same
    )
    lowered = time.perf_counter()
    step(batch, classes)
    first = time.perf_counter()
    seconds = []
    for _ in range(arguments.steps):
        begun = time.perf_counter()
        step(batch, classes)
        seconds.append(time.perf_counter() - begun)
    return {
        "ours": f"resnet{depth}",
        **vars(arguments),
        "images_per_s": round(arguments.batch / min(seconds), 3),
        "step_s": [round(s, 4) for s in seconds],
        "graph_s": round(graph - started, 2),
        "function_s": round(lowered - graph, 2),
        "first_step_s": round(first - lowered, 2),
        "to_first_step_s": round(first - started, 2),
        "max_rss_gb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6, 3),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--shards", type=int)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--update-on", choices=("host", "device"), default="host")
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32")
    parser.add_argument("--cuda", action="store_true", help="GPUs instead of simulated devices")
    print(json.dumps(main(parser.parse_args())))
