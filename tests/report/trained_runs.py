"""A run's folder as training leaves it, made once: a small convolution, trained on coloured squares."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytensor.tensor as pt

import theano_mgpu as tm

CLASSES = ["red", "green", "blue & <i>cyan</i>"]
SIZE, EPOCHS = 8, 12


def squares(count: int, seed: int) -> tm.data.Examples:
    """Noise in which one colour is stronger, sometimes by little, uint8 (count, 8, 8, 3)."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, len(CLASSES), count).astype("int32")
    images = rng.integers(0, 200, (count, SIZE, SIZE, 3)).astype("uint8")
    images[np.arange(count), :, :, labels] //= 2
    images[np.arange(count), :, :, labels] += rng.integers(45, 120, (count, 1, 1)).astype("uint8")
    return tm.data.Examples(images, labels)


def train(folder: Path, contexts: tm.Contexts) -> None:
    """Train, and write what a recipe's run has besides: the examination, the recipe, the machine, the drawing."""
    store = tm.ParameterStore(seed=1)
    images, labels = pt.tensor("images", shape=(None, SIZE, SIZE, 3), dtype="uint8"), pt.ivector("labels")
    rate = pt.scalar("rate", dtype="float32")
    x = tm.nn.relu(tm.layers.conv2d(store, "conv1", images.astype("float32") / 255, 5, 3))
    logits = tm.layers.dense(store, "out", x.mean(axis=(1, 2)), len(CLASSES))
    loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
    params = store.trainable()
    updates = tm.updates.adam(tm.grad(loss, params), params, learning_rate=rate)
    metrics = {"loss": tm.average(loss), "top1": tm.average(tm.nn.top_k_accuracy(logits, labels, 1).mean())}
    step = tm.function([images, labels, rate], metrics, updates=updates, contexts=contexts, shards=2)
    predict = tm.function([images], logits, contexts=contexts, shards=2)
    val = squares(30, seed=2)
    tm.training.fit(
        step,
        tm.training.Batches(squares(48, seed=1), batch_size=8, seed=0),
        store=store,
        run=folder,
        learning_rate=tm.schedules.warmup_cosine(0.05, total_steps=6 * EPOCHS, warmup_steps=6),
        epochs=EPOCHS,
        log_every=2,
        evaluations={"val": lambda: tm.training.evaluate(predict, val, 10)},
        best="val_top1",
        progress=False,
    )
    step.draw(folder / "cut.svg")
    (folder / "machine.json").write_text(json.dumps(tm.report.describe_machine(contexts)))
    (folder / "recipe.toml").write_text('model = "one convolution"  # <script>alert("recipe")</script>\n')
    write_examination(folder, predict(val.images), val, CLASSES)


def write_examination(folder: Path, logits: np.ndarray, examples: Any, classes: list[str]) -> None:
    """``evaluation.npz``, by numpy."""
    likely = np.exp(logits - logits.max(axis=1, keepdims=True)).astype("float64")
    likely /= likely.sum(axis=1, keepdims=True)
    answers, truth = likely.argmax(axis=1), np.asarray(examples.labels)
    confusion = np.zeros((len(classes), len(classes)), "int64")
    np.add.at(confusion, (truth, answers), 1)
    wrong = np.flatnonzero(answers != truth)
    wrong = wrong[np.argsort(-likely[wrong, answers[wrong]])]
    np.savez(
        folder / "evaluation.npz",
        confusion=confusion,
        top5=np.bincount(truth, minlength=len(classes)),
        loss=-np.log(likely[np.arange(len(truth)), truth]).mean(),
        mistake_images=np.asarray(examples.images)[wrong],
        mistake_labels=truth[wrong].astype("int32"),
        mistake_answers=answers[wrong].astype("int32"),
        mistake_confidences=likely[wrong, answers[wrong]].astype("float32"),
        classes=np.array(classes),
    )
