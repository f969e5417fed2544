"""Train ResNet-18 on real photographs of 224 x 224 pixels over several contexts, with one update on the host.

    python examples/photographs_resnet.py
    python examples/photographs_resnet.py --contexts cuda:0,1 --steps 200

The photographs come with scikit-image and scikit-learn: a class is a photograph, an example is a random crop of it, and
validation looks at a part of it that no training crop touches. Nothing is downloaded.
"""

from __future__ import annotations

import argparse
import itertools
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytensor.tensor as pt
from rich.console import Console
from rich.live import Live

import theano_mgpu as tm

STEPS = 80  # enough to name over 90 % of the validation crops


def main(
    steps: int = STEPS,
    batch_size: int = 8,
    learning_rate: float = 1e-3,
    contexts: str | None = None,
    folder: str | Path = "runs/photographs/data",
    output: str | Path = "runs/photographs/resnet18.safetensors",
    image_size: int = 224,
    train_per_class: int = 64,
    seed: int = 0,
) -> float:
    """Train, save the parameters to ``output``, and return the top-1 on the validation crops, 0 to 1."""
    console = Console()

    devices = tm.contexts(contexts or "cuda or cpu:4")
    console.print(f"contexts: {', '.join(devices.names)}")

    folder = tm.data.photographs(folder, image_size=image_size, train_per_class=train_per_class)
    train, val = tm.data.read_split(folder, "train"), tm.data.read_split(folder, "val")
    classes = tm.data.class_names(folder)
    console.print(f"{folder}: {len(classes)} classes, {len(train)} training and {len(val)} validation crops")

    # The graph, as for one device. A shard has two images, few for batch norm: it looks at the whole batch (sync).
    store = tm.ParameterStore(seed=seed)
    images = pt.tensor("images", shape=(None, image_size, image_size, 3), dtype="uint8")
    labels = pt.vector("labels", dtype="int32")
    rate = pt.scalar("rate", dtype="float32")
    network = partial(tm.models.resnet, store, images, depth=18, num_classes=len(classes))
    logits = network(train=True, sync=True, zero_init_residual=True)
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    top1 = tm.nn.top_k_accuracy(logits, labels, 1).mean()

    # tm.grad and tm.average mark where the graph is cut: below them on every device, above them once, on the host.
    params = store.trainable()
    updates = tm.updates.adam(tm.grad(loss, params), params, learning_rate=rate)
    updates |= store.updates()
    metrics = {"loss": tm.average(loss), "top1": tm.average(top1)}
    step = tm.function([images, labels, rate], metrics, updates=updates, contexts=devices, update_on="host")

    # The same parameters, with batch norm's moving averages. Answers keep the batch axis: they come back in order.
    answers = network(train=False).argmax(axis=1)
    predict = tm.function([images], answers, contexts=devices)

    schedule = tm.schedules.warmup_cosine(learning_rate, total_steps=steps, warmup_steps=steps // 10)
    epochs = (train.batches(batch_size, seed=seed, epoch=epoch) for epoch in itertools.count())
    console.print(f"compiling ResNet-18, {sum(p.get_value(borrow=True).size for p in params):,} parameters")
    with Live(console=console, auto_refresh=False) as live:
        started = time.perf_counter()
        for number, batch in enumerate(itertools.islice(itertools.chain.from_iterable(epochs), steps)):
            measured = step(*batch, schedule(number))
            if number == 0:
                started = time.perf_counter()  # the first step compiles
                continue
            seconds = (time.perf_counter() - started) / number
            line = (
                f"step {number + 1}/{steps}  loss {measured['loss']:.3f}  top-1 {measured['top1']:.0%}  "
                f"{batch_size / seconds:.1f} images/s  {seconds * (steps - number - 1):.0f} s left"
            )
            if console.is_terminal:
                live.update(line, refresh=True)
            elif (number + 1) % 10 == 0 or number + 1 == steps:
                print(line, flush=True)

    correct = [predict(batch) == truth for batch, truth in val.batches(batch_size)]
    accuracy = float(np.concatenate(correct).mean())
    console.print(f"validation top-1: {accuracy:.1%} of {len(val)} crops")

    Path(output).parent.mkdir(parents=True, exist_ok=True)
    store.save(output)
    console.print(f"parameters: {output}")
    return accuracy


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--steps", type=int, default=STEPS)
    parser.add_argument("--batch-size", type=int, default=8)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--contexts", help="such as cuda:0,1 or cpu:4; default: the GPUs, else cpu:4")
    parser.add_argument(
        "--folder", type=Path, default=Path("runs/photographs/data"), help="where the crops are written"
    )
    parser.add_argument("--output", type=Path, default=Path("runs/photographs/resnet18.safetensors"))
    parser.add_argument("--seed", type=int, default=0)
    return parser.parse_args()


if __name__ == "__main__":
    options = _arguments()
    if main(**vars(options)) < 0.9 and options.steps >= STEPS:
        raise SystemExit("the network should name over 90 % of the validation crops by now")
