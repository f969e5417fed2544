"""A residual network's training step with its blocks recomputed, against the same step as it stands: time and memory.

python benchmarks/recompute.py --depth 50 --batch 8 --image-size 224

The two run in turns. Memory is the device program's temporary memory, activations above all, as XLA plans it; it does
not depend on the machine's load. The ratios are what counts.
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


def training_step(arguments: argparse.Namespace, contexts: tm.Contexts, recompute: bool) -> tm.Step:
    store = tm.ParameterStore(seed=0)
    size = arguments.image_size
    images = pt.tensor("images", shape=(None, size, size, 3), dtype="float32")
    labels = pt.vector("labels", dtype="int32")
    logits = tm.models.resnet(store, images, depth=arguments.depth, num_classes=1000, train=True, recompute=recompute)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.1, momentum=0.9)
    updates |= store.updates()
    # Random images at this rate may diverge; the speed is the same.
    return tm.function([images, labels], tm.average(loss), updates=updates, contexts=contexts, nonfinite="skip")


def main(arguments: argparse.Namespace) -> None:
    contexts = tm.contexts("cuda" if arguments.cuda else f"cpu:{arguments.devices}")[: arguments.devices]
    rng = np.random.default_rng(0)
    batch = rng.standard_normal((arguments.batch, arguments.image_size, arguments.image_size, 3), dtype="float32")
    classes = rng.integers(0, 1000, arguments.batch, dtype="int32")
    steps = {"kept": training_step(arguments, contexts, False), "recomputed": training_step(arguments, contexts, True)}
    losses: dict[str, list[bytes]] = {kind: [] for kind in steps}

    def train(kind: str) -> None:
        losses[kind].append(np.asarray(steps[kind](batch, classes)).tobytes())

    seconds = seconds_in_turns({kind: partial(train, kind) for kind in steps}, arguments.steps)
    medians = {kind: statistics.median(s) for kind, s in seconds.items()}
    temporary = {kind: step._assembly.program._temporary_bytes for kind, step in steps.items()}
    print_line(
        benchmark="recompute",
        **vars(arguments),
        step_s={kind: round(median, 4) for kind, median in medians.items()},
        fastest_s={kind: round(min(s), 4) for kind, s in seconds.items()},
        temporary_mb={kind: round(size / 1e6, 1) for kind, size in temporary.items()},
        time_ratio=round(medians["recomputed"] / medians["kept"], 3),
        memory_ratio=round(temporary["recomputed"] / temporary["kept"], 3),
        same_losses=losses["recomputed"] == losses["kept"],
    )


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--steps", type=int, default=5)
    parser.add_argument("--depth", type=int, default=50)
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--cuda", action="store_true", help="GPUs instead of simulated devices")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    given = parser.parse_args()
    if given.smoke:
        given.batch, given.image_size, given.depth, given.steps = 4, 32, 20, 2
    main(given)
