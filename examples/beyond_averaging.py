"""What several processes may tell each other besides every gradient: five rules, compared on handwritten digits.

    mpirun -n 4 python examples/beyond_averaging.py
    python examples/beyond_averaging.py                  (alone: nothing to exchange)

Each rank trains the same small network on its own part of the digits, by the same step over its own devices alone; the
rules differ in what they exchange, and when. For each it prints the accuracy of the model that all end with (the centre
of ``easgd``, the mean of the others), where ranks see all digits and where each sees its own; the bytes that a rank has
sent in a run, and the time of a step.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable

import numpy as np
import pytensor.tensor as pt
from sklearn.datasets import load_digits

import theano_mgpu as tm

batch_size = 20  # of each rank
learning_rate = np.float32(0.1)

# What makes an exchange of a step. With plain gradient descent the first is averaging every gradient, as the step over
# the devices of all ranks does.
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


# How the ranks share the training images: every fourth one, or in order of the digits, 0 to 2 to the first of four.
shares = {"mixed": np.arange(len(train_labels)), "by digit": np.argsort(train_labels, kind="stable")}


def part(share: str, rank: int, ranks: int) -> np.ndarray:
    rows = shares[share]
    return rows[rank::ranks] if share == "mixed" else np.array_split(rows, ranks)[rank]


def batches(rows: np.ndarray, steps: int, seed: int) -> list[np.ndarray]:
    """Each row once an epoch, in an order of the epoch's own."""
    epochs = -(-steps * batch_size // len(rows))
    orders = [np.random.default_rng((seed, epoch)).permutation(rows) for epoch in range(epochs)]
    return np.split(np.concatenate(orders)[: steps * batch_size], steps)


def end_with_one_model(train: tm.Step | tm.exchange.Exchange) -> None:
    if isinstance(train, tm.exchange.Elastic):
        for param, centre in train.centre.items():
            param.set_value(centre.get_value())
    else:
        tm.exchange.mean_over_ranks(store.trainable())


def main(steps: int = 400, seeds: int = 3) -> dict[str, dict[str, float]]:
    contexts = tm.contexts("cpu:1")
    rank, ranks = contexts.rank, len(contexts.ranks)
    step = tm.function([x, y], tm.average(loss), updates=updates, contexts=contexts.local)
    step_of_all = tm.function([x, y], tm.average(loss), updates=updates, contexts=contexts, split_over="ranks")
    evaluate = tm.function([x, y], tm.average(accuracy), contexts=contexts.local)
    first = store.get_values()
    for each in (step, step_of_all):
        each(train_images[:batch_size], train_labels[:batch_size])  # compiled before the clock runs
    if rank == 0:
        print(f"{ranks} ranks, {steps} steps; accuracies of {seeds} runs, digits mixed and by digit")
        print(f"{'rule':21}  {'mixed':>6} {'from':>6} {'to':>6}  {'by digit':>8} {'from':>6} {'to':>6}", end="")
        print(f"  {'MB sent':>7}  {'ms a step':>9}")

    means: dict[str, dict[str, float]] = {}
    for name, rule in {"one step of all": lambda _: step_of_all, **rules}.items():
        accuracies: dict[str, list[float]] = {share: [] for share in shares}
        seconds = []
        for share, seed in itertools.product(shares, range(seeds)):
            store.set_values(first)
            train = rule(step)
            rows_of_steps = batches(part(share, rank, ranks), steps, seed)
            begun = time.perf_counter()
            for rows in rows_of_steps:
                train(train_images[rows], train_labels[rows])
            seconds.append((time.perf_counter() - begun) / steps)
            sent = f"{train.bytes_sent / 1e6:7.2f}" if isinstance(train, tm.exchange.Exchange) else "      –"
            end_with_one_model(train)
            accuracies[share].append(float(evaluate(test_images, test_labels)))
        means[name] = {share: float(np.mean(found)) for share, found in accuracies.items()}
        if rank == 0:
            print(f"{name:21}", end="")
            for width, found in zip((6, 8), accuracies.values(), strict=True):
                print(f"  {np.mean(found):{width}.1%} {min(found):6.1%} {max(found):6.1%}", end="")
            print(f"  {sent}  {1000 * np.median(seconds):9.2f}", flush=True)
    if steps >= 400:
        assert all(mean["mixed"] > 0.9 for mean in means.values()), means
    return means


if __name__ == "__main__":
    main()
