"""A tiny network with all that a checkpoint must hold: momentum, moving averages, dropout's generator, EMA.

As a program it trains in a run's folder, for tests that kill it.
"""

from __future__ import annotations

import copy
import functools
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytensor.tensor as pt

import theano_mgpu as tm
from theano_mgpu.data import Examples
from theano_mgpu.training import Batches

COUNT, WIDTH, CLASSES = 22, 6, 3


@dataclass(frozen=True)
class Network:
    store: tm.ParameterStore
    step: tm.Step
    predict: tm.Step
    predict_averaged: tm.Step

    def evaluations(self, batch_size: int = 8) -> dict[str, Any]:
        predictions = {"val": self.predict, "ema": self.predict_averaged}
        return {
            name: lambda step=step: tm.training.evaluate(step, examples(seed=1), batch_size)
            for name, step in predictions.items()
        }


def examples(count: int = COUNT, seed: int = 0) -> Examples:
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, CLASSES, count).astype("int32")
    images = rng.integers(0, 100, (count, WIDTH)).astype("uint8")
    images[np.arange(count), labels] += 100
    return Examples(images, labels)


@functools.cache
def _compiled(contexts: tuple[str, ...]) -> tuple[Network, list[tuple[Any, Any]]]:
    made = network(tm.contexts("cpu:8")[: len(contexts)])
    return made, [(variable, copy.deepcopy(variable.get_value())) for variable in made.step.get_shared()]


def fresh(contexts: tm.Contexts) -> Network:
    """The network as it was made, compiled once."""
    made, values = _compiled(tuple(contexts.names))
    for variable, value in values:
        variable.set_value(copy.deepcopy(value))
    return made


def network(contexts: tm.Contexts, *, units: int = 5, rule: str = "momentum", **options: Any) -> Network:
    store = tm.ParameterStore(seed=3)
    images = pt.tensor("images", shape=(None, WIDTH), dtype="uint8")
    labels = pt.ivector("labels")
    rate = pt.scalar("rate", dtype="float32")

    def logits(train: bool) -> Any:
        x = images.astype("float32") / 255
        x = tm.layers.batch_norm(store, "bn", tm.layers.dense(store, "hidden", x, units), train=train)
        x = tm.layers.dropout(store, "drop", tm.nn.relu(x), 0.2, train=train)
        return tm.layers.dense(store, "out", x, CLASSES)

    outputs = logits(train=True)
    loss = tm.nn.softmax_cross_entropy(outputs, labels).mean()
    params = store.trainable()
    updates = getattr(tm.updates, rule)(tm.grad(loss, params), params, learning_rate=rate)
    averaged = tm.updates.ema(updates, params, decay=0.9)
    metrics = {"loss": tm.average(loss), "top1": tm.average(tm.nn.top_k_accuracy(outputs, labels, 1).mean())}
    options = {"shards": 8, **options}
    step = tm.function(
        [images, labels, rate], metrics, updates=updates | averaged | store.updates(), contexts=contexts, **options
    )
    answers = logits(train=False)
    predicting = {"contexts": contexts, "shards": 8, "split_over": options.get("split_over", "devices")}
    predict = tm.function([images], answers, **predicting)
    predict_averaged = tm.function([images], answers, givens=averaged.shadows, **predicting)
    return Network(store, step, predict, predict_averaged)


class Watched:
    """Batches of which the one that step ``number`` (from 0) is given has a consequence."""

    def __init__(self, source: Any, number: int, consequence: Callable[[], Any]) -> None:
        self.source, self.number, self.consequence = source, number, consequence

    def batches_from(self, cursor: int) -> Iterator[tm.training.Batch]:
        epoch, start = divmod(cursor, COUNT)
        first = epoch * 3 + start // 8
        for number, batch in enumerate(self.source.batches_from(cursor), start=first):
            if number == self.number:
                self.consequence()
            yield batch


class PulledPlug(Exception):
    """The end of a process, in a test's own."""


def pull_the_plug() -> None:
    raise PulledPlug


def train(
    run: Any,
    contexts: tm.Contexts,
    *,
    evaluated: bool = False,
    at: tuple[int, Callable[[], Any]] | None = None,
    made: Network | None = None,
    source: Any = None,
    **options: Any,
) -> tuple[Network, Any]:
    """Fit a fresh network: three batches an epoch, the last of them smaller; at one step something happens."""
    made = made or fresh(contexts)
    if evaluated:
        options |= {"evaluations": made.evaluations(), "best": "val_top1"}
    source = source or Batches(examples(), 8, seed=5)
    if at:
        source = Watched(source, *at)
    schedule = tm.schedules.warmup_cosine(0.5, total_steps=40, warmup_steps=3)
    options = {"learning_rate": schedule, "log_every": 2, "checkpoint_every": 2, "progress": False, **options}
    return made, tm.training.fit(made.step, source, store=made.store, run=run, **options)


if __name__ == "__main__":
    folder, devices, settings = sys.argv[1:]
    train(folder, tm.contexts("cpu:8")[: int(devices)], **json.loads(settings))
