"""Data that stays on the devices against batches that are sent: milliseconds a step, and bytes that a step sends.

Digits (1,797 images of 8 x 8, float32) with a perceptron, and random images of CIFAR-10's size (50,000 x 32 x 32 x 3,
uint8) with a residual network or a perceptron; in turns. ``batch_bytes`` are a step's inputs, ``sent_bytes`` all that
the host hands to the devices, parameters with it; on simulated devices some of them are only pointed at.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import pytensor.tensor as pt
from machine import print_line

import theano_mgpu as tm
from theano_mgpu.programs import DeviceProgram


def digits() -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's digits where it is installed, else as many random ones."""
    try:
        from sklearn.datasets import load_digits
    except ImportError:
        rng = np.random.default_rng(0)
        return rng.random((1797, 64), dtype="float32"), rng.integers(0, 10, 1797, dtype="int32")
    images, labels = load_digits(return_X_y=True)
    return (images / 16).astype("float32"), labels.astype("int32")


def cifar_sized(count: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    return rng.integers(0, 256, (count, 32, 32, 3), dtype="uint8"), rng.integers(0, 10, count, dtype="int32")


def perceptron(store: tm.ParameterStore, x: Any) -> Any:
    flat = x.reshape((-1, int(np.prod(x.type.shape[1:]))))
    hidden = tm.nn.relu(tm.layers.dense(store, "hidden", flat, 256))
    return tm.layers.dense(store, "logits", hidden, 10)


def resnet20(store: tm.ParameterStore, x: Any) -> Any:
    return tm.models.resnet(store, x, depth=20, num_classes=10, train=True)


def steps_of(
    data: tuple[np.ndarray, np.ndarray], network: Callable[..., Any], contexts: tm.Contexts, update_on: str
) -> dict[str, Callable[[np.ndarray], object]]:
    """The same training step, given indices: resident data looks rows up, a sent batch is taken on the host."""
    scale = np.float32(255 if data[0].dtype == "uint8" else 1)

    def step(inputs: list[Any], images: Any, labels: Any) -> tm.Step:
        store = tm.ParameterStore(seed=0)
        logits = network(store, images.astype("float32") / scale)
        loss = tm.nn.softmax_cross_entropy(logits, labels).mean()
        params = store.trainable()
        updates = tm.updates.momentum(tm.grad(loss, params), params, learning_rate=0.01, momentum=0.9)
        updates |= store.updates()
        return tm.function(inputs, tm.average(loss), updates=updates, contexts=contexts, update_on=update_on)

    rows, labels = pt.ivector("rows"), pt.ivector("labels")
    images = pt.tensor("images", shape=(None, *data[0].shape[1:]), dtype=str(data[0].dtype))
    kept_images, kept_labels = tm.resident(*data, name=["images", "labels"])
    sent = step([images, labels], images, labels)
    return {
        "resident": step([rows], kept_images[rows], kept_labels[rows]),
        "sent": lambda indices: sent(data[0][indices], data[1][indices]),
    }


class Sent:
    """Counts the bytes that numpy arrays bring to the devices while it is on."""

    def __init__(self) -> None:
        self.bytes = self.of_inputs = 0
        make, run = jax.make_array_from_callback, DeviceProgram.__call__

        def counted(shape: Any, placement: Any, part: Any, **options: Any) -> Any:
            return make(shape, placement, lambda index: self._counted(part(index)), **options)

        def counted_run(program: Any, turn: Any, inputs: Any, shared: Any) -> Any:
            for array in (array for parts in inputs for array in parts):
                self._counted(array)
                self.of_inputs += array.nbytes
            return run(program, turn, inputs, shared)

        jax.make_array_from_callback, DeviceProgram.__call__ = counted, counted_run

    def _counted(self, value: Any) -> Any:
        self.bytes += value.nbytes if isinstance(value, np.ndarray) else 0
        return value


def measured(
    steps: dict[str, Callable[[np.ndarray], object]], length: int, arguments: argparse.Namespace, sent: Sent
) -> dict[str, dict[str, float]]:
    rng = np.random.default_rng(1)
    seconds: dict[str, list[float]] = {name: [] for name in steps}
    sizes = {name: {"batch_bytes": 0, "sent_bytes": 0} for name in steps}
    for turn in range(arguments.steps + 2):  # in turns, so that a slow minute slows both
        indices = rng.integers(0, length, arguments.batch, dtype="int32")
        for name, step in steps.items():
            sent.bytes = sent.of_inputs = 0
            begun = time.perf_counter()
            step(indices)
            if turn > 1:
                seconds[name].append(time.perf_counter() - begun)
            sizes[name] = {"batch_bytes": sent.of_inputs, "sent_bytes": sent.bytes}
    return {
        name: {
            "step_ms": round(1e3 * statistics.median(seconds[name]), 3),
            "fastest_ms": round(1e3 * min(seconds[name]), 3),
            **sizes[name],
        }
        for name in steps
    }


def main(arguments: argparse.Namespace) -> None:
    contexts = tm.contexts("cuda" if arguments.cuda else "cpu:8")[: arguments.devices]
    sent = Sent()
    images = cifar_sized(arguments.images)
    kinds = {"digits": (digits(), perceptron), "cifar_mlp": (images, perceptron), "cifar_resnet20": (images, resnet20)}
    figures = {
        kind: measured(steps_of(data, network, contexts, arguments.update_on), len(data[0]), arguments, sent)
        for kind, (data, network) in kinds.items()
        if kind in arguments.kinds
    }
    ratios = {f"ratio_{k}": round(f["resident"]["step_ms"] / f["sent"]["step_ms"], 3) for k, f in figures.items()}
    print_line(benchmark="resident", **vars(arguments), **figures, **ratios)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kinds", nargs="+", default=["digits", "cifar_mlp", "cifar_resnet20"])
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--images", type=int, default=50_000)
    parser.add_argument("--devices", type=int, default=2)
    parser.add_argument("--update-on", default="host", choices=["host", "device"])
    parser.add_argument("--steps", type=int, default=15)
    parser.add_argument("--cuda", action="store_true", help="GPUs instead of simulated devices")
    parser.add_argument("--smoke", action="store_true", help="small and quick: does it run at all?")
    given = parser.parse_args()
    if given.smoke:
        given.kinds, given.batch, given.images, given.steps = ["digits", "cifar_mlp"], 16, 1000, 2
    main(given)
