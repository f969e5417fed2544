"""What several processes may tell each other besides every gradient: five rules, compared on handwritten digits.

    mpirun -n 4 python examples/beyond_averaging.py
    python examples/beyond_averaging.py                  (alone: nothing to exchange)

Each rank trains the same small network on its own part of the digits, by the same step over its own devices alone; the
rules differ in what they exchange, and when. For each it prints the accuracy of the model that all of them end with (of
``easgd`` that is the centre, of the others the mean), the bytes that a rank has sent, and the time of a step.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytensor.tensor as pt
from sklearn.datasets import load_digits

import theano_mgpu as tm

batch_size = 20  # of each rank
learning_rate = np.float32(0.1)

# What makes an exchange of a step. With plain gradient descent the first is averaging every gradient.
rules: dict[str, Callable[[tm.Step], tm.exchange.Exchange]] = {
    "mean, every step": lambda step: tm.exchange.local_sgd(step, every=1),
    "local SGD, every 8": lambda step: tm.exchange.local_sgd(step, every=8),
    "EASGD, every 8": lambda step: tm.exchange.easgd(step, every=8, beta=0.9),
    "gossip, 1 in 8": lambda step: tm.exchange.gossip(step, probability=1 / 8),
    "bfloat16, every step": lambda step: tm.exchange.compressed(step, dtype="bfloat16"),
    "float16, every step": lambda step: tm.exchange.compressed(step, dtype="float16"),
    "bfloat16, every 8": lambda step: tm.exchange.compressed(step, every=8, dtype="bfloat16"),
}

# 8 x 8 pixels from 0 to 16, and what they show: 1200 to train, 597 to test.
digits = load_digits()
order = np.random.default_rng(0).permutation(len(digits.target))
images = (digits.data / 16).astype("float32")[order]
labels = digits.target.astype("int32")[order]
train_images, train_labels, test_images, test_labels = images[:1200], labels[:1200], images[1200:], labels[1200:]

store = tm.ParameterStore(seed=0)
x, y = pt.tensor("x", shape=(None, 64), dtype="float32"), pt.vector("y", dtype="int32")
hidden = pt.tanh(tm.layers.dense(store, "hidden", x, 128))
logits = tm.layers.dense(store, "output", hidden, 10)
loss = tm.nn.softmax_cross_entropy(logits, y).mean()
accuracy = pt.eq(logits.argmax(axis=1), y).mean(dtype="float32")
updates = tm.updates.sgd(loss, store.trainable(), learning_rate)


def batch(part: np.ndarray, step: int, seed: int) -> np.ndarray:
    """Rows of a rank's ``part`` of the training images: each once an epoch, in an order of the epoch's own."""
    epoch, place = divmod(step, len(part) // batch_size)
    rows = np.random.default_rng((seed, epoch)).permutation(part)
    return rows[place * batch_size : (place + 1) * batch_size]


def trained(train: tm.exchange.Exchange, steps: int, seed: int) -> float:
    """Seconds of a step."""
    part = np.arange(train.rank, len(train_images), train.ranks)
    batches = [batch(part, step, seed) for step in range(steps)]
    begun = time.perf_counter()
    for rows in batches:
        train(train_images[rows], train_labels[rows])
    return (time.perf_counter() - begun) / steps


def end_with_one_model(train: tm.exchange.Exchange) -> None:
    if isinstance(train, tm.exchange.Elastic):
        for param, centre in train.centre.items():
            param.set_value(centre.get_value())
    else:
        tm.exchange.mean_over_ranks(store.trainable())


def main(steps: int = 400, seeds: int = 5) -> dict[str, float]:
    contexts = tm.contexts("cpu:1")
    step = tm.function([x, y], tm.average(loss), updates=updates, contexts=contexts)
    evaluate = tm.function([x, y], tm.average(accuracy), contexts=contexts)
    first = store.get_values()
    step(train_images[:batch_size], train_labels[:batch_size])  # compiled before the clock runs

    accuracies: dict[str, Any] = {}
    for name, rule in rules.items():
        found, seconds = [], []
        for seed in range(seeds):
            store.set_values(first)
            train = rule(step)
            seconds.append(trained(train, steps, seed))
            sent = train.bytes_sent
            end_with_one_model(train)
            found.append(float(evaluate(test_images, test_labels)))
        accuracies[name] = float(np.mean(found))
        if train.rank == 0:
            if len(accuracies) == 1:
                print(f"{train.ranks} ranks, {steps} steps, {seeds} orders of the data")
                print(f"{'rule':22}{'accuracy':>9}{'lowest':>9}{'highest':>9}{'MB sent':>9}{'ms a step':>11}")
            row = f"{name:22}{np.mean(found):9.2%}{min(found):9.2%}{max(found):9.2%}"
            print(f"{row}{sent / 1e6:9.2f}{1000 * np.median(seconds):11.2f}", flush=True)
    if steps >= 400:
        assert min(accuracies.values()) > 0.9, accuracies
    return accuracies


if __name__ == "__main__":
    main()
